"""The verbs of ``hub_release``."""
