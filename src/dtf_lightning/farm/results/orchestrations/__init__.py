"""What results tell of the devices that did parts of jobs."""
