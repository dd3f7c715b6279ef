"""The commands of jobs that are split over devices."""
