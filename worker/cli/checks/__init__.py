"""The commands that check: `doctor` an environment, `live` and `ready` the workers of this host."""
