"""For tests, ours and our users': a fake clock, an in-memory store and other stand-ins for the outside world."""
