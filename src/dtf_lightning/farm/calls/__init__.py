"""Calls of Python functions as tasks: how one is written, the process that makes it, and how what it returned is read."""
