"""What operators and orchestrators see of a worker: its probes, its metrics, and the HTTP server of both."""
