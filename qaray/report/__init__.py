"""The static report of a run: pages that open from disk, offline."""
