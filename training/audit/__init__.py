"""Faults hidden in a run's data: copies across splits, swapped labels, foreign parents."""
