"""The record of trainings that borrow devices."""
