"""What operators and orchestrators see of a worker: probes, metrics, the HTTP server of both, task events."""
