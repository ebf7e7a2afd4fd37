"""The page for trying a package, bundled into a Space's ``app.py``."""
