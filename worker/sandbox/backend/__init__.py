"""A backend with the platform's API, whose state is one SQLite file."""
