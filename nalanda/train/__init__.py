"""One training loop for every model and objective: `loop.fit`. It knows no objective and no architecture."""
