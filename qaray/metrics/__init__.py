"""Numbers from arrays and texts. Pure: neither Ray nor torch."""
