"""Raw files to a clean, split corpus, every row accounted for: `build.py` makes one, `store.py` reads it."""
