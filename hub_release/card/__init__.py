"""The model card, filled from a package's recorded files."""
