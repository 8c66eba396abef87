"""An agent with the platform's API for one Ray cluster, which it reaches through Ray's dashboard."""
