"""Reservations by people, as the API takes and shows them."""
