"""Numbers of scientific text, with their units."""
