"""From labeled texts to a run folder with a trained model and its honest scores."""
