"""Elastic training: Lightning runs whose workers join, leave and die while training goes on."""
