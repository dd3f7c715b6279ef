"""Who is in the run, and how it goes from one world to the next: pure functions, standard library only.

Read in this order: `membership` (who is here: events in, decision out), `generation` (an agreed world with ranks).
No I/O, no clock, no threads: time is an argument, and what follows from a decision is done in `coordination`.
"""
