"""A run: its record in Redis, its steps, its progress and its end. Knows no workflow."""
