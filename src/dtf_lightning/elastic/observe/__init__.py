"""Measurements of a run: ledgers of samples, accounts of time, pauses of rescales, stragglers."""
