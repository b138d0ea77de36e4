"""The run directory, and the cluster that a run uses."""
