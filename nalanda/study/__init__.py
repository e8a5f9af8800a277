"""Questions about many runs: how size, data and compute trade against each other."""
