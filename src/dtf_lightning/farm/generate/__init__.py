"""Tests that are written from a model: its family, what it will need, pytest files that a person would keep, and a plan."""
