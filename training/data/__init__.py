"""Files and Hub datasets → rows, splits, balanced rows and embeddings."""
