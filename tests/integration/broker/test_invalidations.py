"""An invalidation wakes a consumer whose queues were empty, whatever is read first."""

from contextlib import suppress
from queue import Empty

from kombu import Queue

from tests.integration.broker.broker_site import Site
from worker.broker import Connection
from worker.sandbox import wait_for


def test_message_that_comes_after_exists_is_fetched_at_once(site: Site) -> None:
    with Connection(site.server.url) as connection:
        channel = connection.default_channel
        got: list[object] = []
        with connection.Consumer([Queue("plain")], callbacks=[lambda body, _message: got.append(body)]):
            # Given a consumer that has found nothing and sent EXISTS; the reply has arrived but is not read
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.2)
            channel._idle_until = 0.0
            channel._brpop_start()
            with suppress(Empty):
                channel._brpop_read()
            wait_for(lambda: channel.client.connection.can_read(timeout=0), 2, "the reply to EXISTS")
            # When a message comes, and its invalidation is read before that reply
            connection.Producer().publish({"a": 1}, routing_key="plain")
            wait_for(lambda: channel._listener.connection.can_read(timeout=0), 2, "the invalidation")
            with suppress(Empty):
                channel._on_invalidation()
            with suppress(Empty):
                channel._brpop_read()
            # Then the consumer fetches without waiting
            channel._brpop_start()
            assert channel._in_poll, "it waits"
            channel._brpop_read()
            assert got == [{"a": 1}]
