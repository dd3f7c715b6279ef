"""Processes of the operating system: watching them, ending them, and being ended together with them."""
