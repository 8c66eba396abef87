"""An agent that speaks the platform's API in front of one Ray cluster, by way of Ray's dashboard."""
