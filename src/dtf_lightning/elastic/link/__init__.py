"""The socket between an agent and its training workers: its messages and the worker's end of it."""
