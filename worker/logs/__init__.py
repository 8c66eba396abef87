"""Logs of Ray jobs, followed for whoever listens: `tail_logs` books, a relay in every worker follows."""
