"""What the backend gets of runs, who reports it, and when."""
