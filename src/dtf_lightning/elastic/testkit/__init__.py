"""Helpers for tests of elastic training, ours and yours: a cluster on one machine, faults as data. Public."""
