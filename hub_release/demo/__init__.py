"""The page on which a package can be tried."""
