"""Secrets that the farm keeps: set by people, given to workers for their own attempts alone."""
