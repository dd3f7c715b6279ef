"""What the record holds of jobs that are split over devices, and how it is written."""
