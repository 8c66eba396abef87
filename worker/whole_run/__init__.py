"""Actions that run whole, each as a job of the Ray cluster, followed by polls."""
