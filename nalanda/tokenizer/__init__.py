"""Text to token ids and back, without loss: training, loading, saving, judging tokenizers."""
