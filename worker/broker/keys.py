"""The names of the broker's own keys in Redis."""

from collections.abc import Collection

from shared.channels import redis_prefix


# Workers of an older release share the first two keys, so their names and contents stay.
def unacked_key() -> str:
    """Hash: by delivery tag, the list that the message came from, a line feed, the message."""
    return f"{redis_prefix()}:broker:held"


def redelivery_key() -> str:
    """Sorted set: delivery tags by the time, on Redis's clock, at which the message is redelivered."""
    return f"{redis_prefix()}:broker:due"


def redelivering_key() -> str:
    """Kept for a second by the consumer that requeues the overdue messages of all."""
    return f"{redis_prefix()}:broker:redelivering"


def delayed_key(queue: str) -> str:
    """Sorted set: by the time on Redis's clock at which they are due, list, a line feed and message."""
    return f"{redis_prefix()}:broker:delayed:{queue}"


def earlier_key() -> str:
    """The time on Redis's clock at which a delayed message last became the first of its queue that is due."""
    return f"{redis_prefix()}:broker:earlier"


def watcher_key(queues: Collection[str]) -> str:
    """The consumer that watches these queues for all that consume from exactly them."""
    return f"{redis_prefix()}:broker:watcher:{','.join(sorted(queues))}"


def tokens_key(queues: Collection[str]) -> str:
    """List, which idle consumers of these queues wait on: one element when one of them is to look."""
    return f"{redis_prefix()}:broker:tokens:{','.join(sorted(queues))}"


def wake_key(consumer: str) -> str:
    """List, which a consumer waits on beside the tokens: it wakes itself when more queues can be fetched."""
    return f"{redis_prefix()}:broker:wake:{consumer}"
