"""Real small data, the training of the embedded models, and their weights."""
