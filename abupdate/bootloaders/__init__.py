"""Adapters to the store in which a bootloader keeps what boots next."""
