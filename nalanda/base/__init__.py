"""What every layer stands on: run folders, atomic files, seeds, progress. Imports nothing from above."""
