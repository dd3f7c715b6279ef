"""Reservations of workers by people."""
