"""Text from a trained model: greedy, sampled, beam-searched and streamed, and the scores of given texts."""
