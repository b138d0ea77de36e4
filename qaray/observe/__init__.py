"""What a user sees of a run: progress, metrics, status, plans, jobs."""
