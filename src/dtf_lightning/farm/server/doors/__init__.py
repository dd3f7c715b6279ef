"""Who is let in to what: every route asks here before it does anything, and tokens are made here."""
