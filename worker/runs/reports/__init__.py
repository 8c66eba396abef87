"""What the backend is told of runs, by whom, and when."""
