"""The coordinators together: who leads, who led, how their machines are, and what an operator wants of them."""
