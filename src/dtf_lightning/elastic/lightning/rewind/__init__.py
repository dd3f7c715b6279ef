"""Back to a committed position: what an interrupted step, validation or hook has changed is put right."""
