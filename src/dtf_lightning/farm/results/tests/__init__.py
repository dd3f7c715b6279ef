"""What results say of tests, which are tasks of one name: all of them at a glance, one of them over time, two plans side by side."""
