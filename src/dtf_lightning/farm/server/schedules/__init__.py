"""Schedules: plans that are registered, and submitted at their times by the leader."""
