"""The shares of tenants: how much of what all workers do may be done for one of them at once."""
