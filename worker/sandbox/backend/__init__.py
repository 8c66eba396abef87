"""A backend that speaks the platform's API, with its state in one SQLite file."""
