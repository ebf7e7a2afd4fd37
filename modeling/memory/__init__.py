"""The memory of a recipe, predicted and counted."""
