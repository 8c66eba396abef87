"""The envelope of an inference that outlives its request (platform-api: "Backend", its last paragraph)."""

DEFERRED_KEY = "__synapse_deferred__"
"""True in an envelope, which stands in place of a result."""

POLL_KEY = "__synapse_poll__"
"""In the body of a request that polls: the ticket of an envelope."""

PENDING = "pending"
"""Status of an envelope with the `ticket` to poll for."""

FAILED = "failed"
"""Status of an envelope with the `error` of the inference."""

NOT_FOUND = "not_found"
"""Status of an envelope from a replica that does not know the ticket."""
