"""What the workflows share: how messages become runs, the base of their tasks, dead letters, stops."""
