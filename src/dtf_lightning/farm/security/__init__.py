"""Who may talk to a farm and what it may ask, and what guards the wire between: names, certificates, limits."""
