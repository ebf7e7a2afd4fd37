"""The page on which a package can be tried, bundled into a Space's ``app.py``."""
