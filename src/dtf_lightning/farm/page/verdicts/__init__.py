"""The screens that say how tests fare: Grid, Test and Compare."""
