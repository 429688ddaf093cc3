"""Byte formats: bytes in, model values out; nothing here opens a file."""
