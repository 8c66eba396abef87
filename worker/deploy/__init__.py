"""A run of `deploy`: capacity gate, submission to Ray Serve, wait, registration."""
