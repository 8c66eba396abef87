"""Logs of Ray jobs: `tail_logs` subscribes a job to a log, and the relay in every worker tails it."""
