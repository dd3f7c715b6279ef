"""Pure functions that decide which nodes a run's next generation has, and whose training state is the newest.

They use the standard library only: no I/O, no clock, no threads. Time and events are parameters, decisions are return
values.
"""
