"""The socket between an agent and its training workers: the messages on it, and the worker's end of it."""
