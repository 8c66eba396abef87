"""Redis as it is run: behind Sentinel, and shared by installations that prefix their queues."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.redis_url import read_redis_url
from tests.harness.sentinel import SentinelGroup
from tests.integration.broker.broker_site import Site
from worker.broker import Connection

pytestmark = pytest.mark.timeout(240)


def publisher(url: str, **conf: Any) -> Celery:
    app = Celery("publisher", broker=url, amqp="shared.redis_broker:AMQP", set_as_current=False)
    app.conf.update(task_ignore_result=True, **conf)
    return app


def test_keyprefix_keeps_the_queues_of_two_apart(site: Site) -> None:
    # Given two workers on the same database whose transports have different prefixes
    site.url = f"{site.server.url}?global_keyprefix=one:"
    site.worker()
    site.url = f"{site.server.url}?global_keyprefix=two:"
    site.worker()

    # When stock clients with the same option publish for the one
    stock = Celery("stock", broker=site.server.url, set_as_current=False)
    stock.conf.update(broker_transport_options={"global_keyprefix": "one:"}, task_ignore_result=True)
    for number in range(5):
        stock.send_task("note", [f"one-{number}"], queue="first")
    publisher(site.url).send_task("note", ["two"], queue="second")

    # Then each message is run once, and no key of the queues is without a prefix
    site.wait(lambda: len(site.done()) == 6, 30, "six tasks")
    assert sorted(site.done()) == [*(f"one-{number}" for number in range(5)), "two"]
    ours = {"begun", "done"}
    site.wait(lambda: not site.redis.hlen("one:synapse:broker:held"), 10, "the acknowledgements")
    assert all(key.startswith(("one:", "two:")) for key in site.redis.scan_iter() if key not in ours)
    stock.close()


def test_prefixed_message_of_a_dead_worker_comes_again(site: Site) -> None:
    site.url = f"{site.server.url}?global_keyprefix=one:"
    first = site.worker(vt=2)
    publisher(site.url).send_task("note", ["x", 30], queue="first")
    site.wait(lambda: len(site.begun()) == 1, 30, "its start")

    first.kill()
    site.worker(vt=2)

    site.wait(lambda: len(site.begun()) == 2, 30, "its second start")
    assert site.redis.hlen("one:synapse:broker:held") == 1


def test_options_of_the_url_reach_the_brokers_connections(site: Site) -> None:
    url = f"{site.server.url}?client_name=ours&socket_timeout=7&health_check_interval=3"
    with Connection(url) as connection:
        connection.default_channel.queue_declare("first")
        names = {client["name"] for client in site.redis.client_list()}
        assert "ours" in names
        assert connection.default_channel.pool.connection_kwargs["socket_timeout"] == 7


@pytest.fixture
def group(tmp_path: Path) -> Iterator[SentinelGroup]:
    made = SentinelGroup(tmp_path / "sentinel")
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_fail_over_heals_while_the_old_master_lives_on(site: Site, group: SentinelGroup, pool: str) -> None:
    # Given a worker that found its broker through Sentinel, and a client of the old master's own address
    site.url = group.url
    site.redis = read_redis_url(group.url).client(decode_responses=True)
    site.worker(pool=pool, concurrency=2, vt=10)
    app = publisher(group.url, broker_transport_options={"socket_timeout": 5})
    app.send_task("note", ["before"], queue="first")
    site.wait(lambda: site.done() == ["before"], 30, "the first task")

    # When the old master becomes a replica
    old = group.fail_over()

    # Then messages that come after that are run, and the worker's own client writes to the new master
    app.send_task("note", ["after"], queue="first", retry=True)
    site.wait(lambda: site.done() == ["before", "after"], 60, "the second task")
    with Redis(port=old, decode_responses=True) as replica:
        assert replica.info("replication")["role"] == "slave"
    app.close()


def test_client_leaves_a_server_that_became_a_replica(site: Site) -> None:
    # Given a client of an address behind which the master changes without Sentinel
    client = read_redis_url(site.server.url).client()
    client.set("key", 1)
    before = client.client_id()

    # When the server is a replica for a moment
    site.redis.replicaof("127.0.0.1", 1)
    with pytest.raises(RedisConnectionError, match="read-only replica"):
        client.set("key", 2)
    site.redis.replicaof("NO", "ONE")

    # Then the client has connected anew
    client.set("key", 3)
    assert client.client_id() != before


async def test_client_of_an_event_loop_leaves_a_replica(site: Site) -> None:
    async with AsyncRedis.from_pool(read_redis_url(site.server.url).async_pool()) as client:
        await client.set("key", 1)
        before = await client.client_id()

        site.redis.replicaof("127.0.0.1", 1)
        with pytest.raises(RedisConnectionError, match="read-only replica"):
            await client.set("key", 2)
        site.redis.replicaof("NO", "ONE")

        await client.set("key", 3)
        assert await client.client_id() != before


async def test_client_of_an_event_loop_follows_the_sentinels(group: SentinelGroup) -> None:
    async with AsyncRedis.from_pool(read_redis_url(group.url).async_pool(max_connections=2)) as client:
        await client.set("key", 1)
        assert group.master().get("key") == "1"
