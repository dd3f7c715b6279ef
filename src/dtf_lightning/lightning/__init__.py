"""Adapters to the host, PyTorch Lightning: the callback, the strategy and the loops.

Everything that touches a private name of Lightning is here, and each module that does lists which and why.
"""
