"""What the data of a run hide: copies across splits, exchanged labels, foreign parents."""
