"""A package at work."""
