"""A node's agent: its loop, its talk with etcd, with its workers and with other agents; `live/` and `restart/` differ by mode.

Only agents (torchrun processes) talk to etcd. Workers talk to their agent over a unix socket, see `elastic.link`.
"""
