"""The scheduler: which task goes to which worker. A leader feeds it with what the record shows, and asks it."""
