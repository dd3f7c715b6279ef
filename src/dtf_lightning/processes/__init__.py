"""Processes of an operating system: watching them, ending them, and ending with them."""
