"""The farm: one pool of machines that trains, tests and measures AI models. It is empty so far."""
