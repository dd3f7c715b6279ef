"""The adapters that make Lightning elastic: callbacks, strategy, loops.

`loops.py` is the only file that overrides Lightning's private API, `host/` the only room that reads it.
"""
