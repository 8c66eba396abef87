"""The bell wakes a consumer whose queues were empty, in whatever order its news and answers are read."""

from contextlib import suppress
from queue import Empty

from kombu import Queue

from tests.integration.broker.broker_site import Site
from worker.broker import Connection
from worker.sandbox import wait_for


def test_a_message_that_comes_right_after_the_look_is_fetched_at_once(site: Site) -> None:
    with Connection(site.server.url) as connection:
        channel = connection.default_channel
        got: list[object] = []
        with connection.Consumer([Queue("plain")], callbacks=[lambda body, _message: got.append(body)]):
            # Given a consumer that has found nothing and looks; the answer has come but is not read
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.2)
            channel._rest_until = 0.0
            channel._brpop_start()
            with suppress(Empty):
                channel._brpop_read()
            wait_for(lambda: channel.client.connection.can_read(timeout=0), 2, "the look's answer")
            # When a message comes, and its bell is read before that answer
            connection.Producer().publish({"a": 1}, routing_key="plain")
            wait_for(lambda: channel._bell.connection.can_read(timeout=0), 2, "the bell")
            with suppress(Empty):
                channel._on_bell()
            with suppress(Empty):
                channel._brpop_read()
            # Then the consumer fetches without resting
            channel._brpop_start()
            assert channel._in_poll, "it rests"
            channel._brpop_read()
            assert got == [{"a": 1}]
