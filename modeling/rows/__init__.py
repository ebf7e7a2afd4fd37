"""Labeled rows of files, for every command that reads labels."""
