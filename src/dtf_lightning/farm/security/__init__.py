"""Who may talk to a farm and what each may do (roles, tokens, their end), and what guards the wire: names and certificates."""
