"""What is told to a forge: annotations, job summaries, commit statuses, comments and check runs."""
