"""What ships as code: the bundles, what they need installed, and the endpoint."""
