"""How good a model is: translations scored, baselines beside it, errors in slices, and the report a person reads."""
