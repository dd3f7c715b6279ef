"""Helpers that try a farm: a farm of processes on this machine, simulated workers, storms of faults, and their books."""
