"""The page for trying a package."""
