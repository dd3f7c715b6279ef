"""The story of a run, in the standard library only: who is here, which world comes next, whose state is newest.

No I/O, no clock, no threads: time and events are parameters, decisions are return values.
"""
