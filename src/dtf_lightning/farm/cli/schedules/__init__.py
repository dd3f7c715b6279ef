"""`dtf farm schedules`, `dtf farm schedule`: plans that are submitted at certain times."""
