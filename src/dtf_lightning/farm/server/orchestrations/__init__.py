"""Jobs that are split over devices: accepted, kept going, shown, ended."""
