"""The static report of a run: opens from disk with no network."""
