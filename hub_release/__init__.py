"""From a run folder to a checked package."""
