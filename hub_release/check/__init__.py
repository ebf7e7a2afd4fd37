"""The gate: what is wrong with a package."""
