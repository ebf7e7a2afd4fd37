"""The check: what is wrong with a package."""
