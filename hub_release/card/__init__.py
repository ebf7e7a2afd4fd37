"""The model card, filled from the recorded files of a package."""
