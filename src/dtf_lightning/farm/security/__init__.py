"""Who may talk to a coordinator, and what each may do: roles and their permissions, signed tokens, and their end."""
