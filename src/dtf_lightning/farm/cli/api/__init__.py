"""The commands about the coordinators and their API."""
