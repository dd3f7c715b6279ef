"""These adapters make Lightning elastic: callbacks, a strategy, and training loops.

Public are the names in `dtf_lightning.__all__`; everything else here is internal.

`loops.py` is the only file that overrides Lightning's private API, `host/` the only room that reads it.
"""
