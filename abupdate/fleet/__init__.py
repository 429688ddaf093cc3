"""Peers of one site: a pure core that agrees on who may be down, and the edges that carry it (UDP, serial, log, daemon)."""
