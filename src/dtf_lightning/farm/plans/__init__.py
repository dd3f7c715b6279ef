"""Plans: many tasks in one YAML file, read, expanded and made into what a farm is asked for. Pure but for the reading."""
