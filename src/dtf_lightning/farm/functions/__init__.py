"""Functions that a Python client runs on a farm: what is sent of them, the futures of their values, and how these are read."""
