"""For authors of plugins: a new release from a template, and one task through a release's hooks."""
