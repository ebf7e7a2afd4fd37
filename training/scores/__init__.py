"""Scores, thresholds, calibration and pictures."""
