"""From rows to a run folder."""
