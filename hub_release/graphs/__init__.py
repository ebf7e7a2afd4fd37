"""Graphs of a package: written, and measured before they are published."""
