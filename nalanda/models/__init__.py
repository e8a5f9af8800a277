"""Model families as data, and models on disk."""
