"""An invalidation of a queue makes a waiting consumer fetch, in whatever order the replies are read."""

from contextlib import suppress
from queue import Empty

from kombu import Queue

from tests.integration.broker.broker_harness import BrokerHarness
from worker.broker import Connection
from worker.sandbox import wait_for


def test_message_that_comes_after_exists_is_fetched_at_once(broker: BrokerHarness) -> None:
    with Connection(broker.server.url) as connection:
        channel = connection.default_channel
        received: list[object] = []
        with connection.Consumer([Queue("plain")], callbacks=[lambda body, _message: received.append(body)]):
            # Given a consumer with empty queues that has sent EXISTS, and whose reply is not read yet
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.2)
            channel.idle_until = 0.0
            channel._brpop_start()
            with suppress(Empty):
                channel._brpop_read()
            channel._brpop_start()
            wait_for(lambda: channel.client.connection.can_read(timeout=0), 2, "the reply to EXISTS")
            # When a message is published, and its invalidation is read before that reply
            connection.Producer().publish({"a": 1}, routing_key="plain")
            wait_for(lambda: channel._listener.connection.can_read(timeout=0), 2, "the invalidation")
            with suppress(Empty):
                channel._on_invalidation()
            with suppress(Empty):
                channel._brpop_read()
            # Then the consumer fetches the message at once
            channel._brpop_start()
            assert channel._in_poll, "it is waiting for an invalidation"
            channel._brpop_read()
            assert received == [{"a": 1}]
