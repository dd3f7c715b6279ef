"""The guarded writes of incidents and silences; their values are `rules.watching.incidents`."""
