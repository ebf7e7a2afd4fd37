"""Scores, thresholds, calibration and plots."""
