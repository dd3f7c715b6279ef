"""Drives the story of `elastic`: an agent's threads, its talk with etcd, with its workers and with other agents.

Only agents (torchrun processes) talk to etcd. Workers talk to their agent over a unix socket, see `messages`.
`entry_points` is what torchrun loads: it imports nothing heavy.
"""
