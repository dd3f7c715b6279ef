"""Measurements of a run: ledgers of samples, the account of time, pauses, stragglers."""
