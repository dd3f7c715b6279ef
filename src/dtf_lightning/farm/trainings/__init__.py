"""Elastic trainings as tenants of the farm."""
