"""Scores of many rows: read, classified and written part by part."""
