"""Redis behind Sentinel, and one Redis that several installations share with prefixes."""

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
from tests.integration.broker.broker_harness import BrokerHarness
from worker.broker import Connection
from worker.sandbox.processes import wait_for

pytestmark = pytest.mark.timeout(240)


def publisher(url: str, **conf: Any) -> Celery:
    app = Celery("publisher", broker=url, amqp="shared.redis_broker:AMQP", set_as_current=False)
    app.conf.update(task_ignore_result=True, **conf)
    return app


def test_keyprefix_keeps_the_queues_of_two_apart(broker: BrokerHarness) -> None:
    # Given two workers on the same database whose transports have different prefixes
    broker.url = f"{broker.server.url}?global_keyprefix=one:"
    broker.start_worker()
    broker.url = f"{broker.server.url}?global_keyprefix=two:"
    broker.start_worker()

    # When Celery clients with each prefix publish, one of them on kombu's own transport
    kombu_app = Celery("kombu", broker=broker.server.url, set_as_current=False)
    kombu_app.conf.update(broker_transport_options={"global_keyprefix": "one:"}, task_ignore_result=True)
    for number in range(5):
        kombu_app.send_task("record", [f"one-{number}"], queue="first")
    publisher(broker.url).send_task("record", ["two"], queue="second")

    # Then each message runs once, and every key of the broker has a prefix
    broker.wait_for(lambda: len(broker.ended()) == 6, 30, "six tasks")
    assert sorted(broker.ended()) == [*(f"one-{number}" for number in range(5)), "two"]
    of_tasks = {"started", "ended", "deliveries", "etas"}
    broker.wait_for(lambda: not broker.redis.hlen("one:synapse:broker:held"), 10, "the acknowledgements")
    assert all(key.startswith(("one:", "two:")) for key in broker.redis.scan_iter() if key not in of_tasks)
    kombu_app.close()


def test_prefixed_message_of_a_killed_worker_is_redelivered(broker: BrokerHarness) -> None:
    broker.url = f"{broker.server.url}?global_keyprefix=one:"
    first = broker.start_worker(visibility_timeout=2)
    publisher(broker.url).send_task("record", ["x", 30], queue="first")
    broker.wait_for(lambda: len(broker.started()) == 1, 30, "its start")

    first.kill()
    broker.start_worker(visibility_timeout=2)

    broker.wait_for(lambda: len(broker.started()) == 2, 30, "its second start")
    assert broker.redis.hlen("one:synapse:broker:held") == 1


def test_options_of_the_url_reach_the_brokers_connections(broker: BrokerHarness) -> None:
    url = f"{broker.server.url}?client_name=ours&socket_timeout=7&health_check_interval=3"
    with Connection(url) as connection:
        connection.default_channel.queue_declare("first")
        names = {client["name"] for client in broker.redis.client_list()}
        assert "ours" in names
        assert connection.default_channel.pool.connection_kwargs["socket_timeout"] == 7


@pytest.fixture
def group(tmp_path: Path) -> Iterator[SentinelGroup]:
    group = SentinelGroup(tmp_path / "sentinel")
    try:
        group.start()
        yield group
    finally:
        group.close()


@pytest.mark.parametrize("pool", ["threads", pytest.param("prefork", marks=pytest.mark.chaos)])
def test_worker_follows_a_failover_whose_old_master_lives_on(
    broker: BrokerHarness, group: SentinelGroup, pool: str
) -> None:
    # Given a worker and a publisher that find their broker through Sentinel
    broker.url = group.url
    broker.redis = read_redis_url(group.url).client(decode_responses=True)
    broker.start_worker(pool=pool, concurrency=2, visibility_timeout=10)
    app = publisher(group.url, broker_transport_options={"socket_timeout": 5})
    app.send_task("record", ["before"], queue="first")
    broker.wait_for(lambda: broker.ended() == ["before"], 30, "the first task")

    # When the old master becomes a replica
    old = group.fail_over()

    # Then later messages run, and the task's client writes to the new master
    app.send_task("record", ["after"], queue="first", retry=True)
    broker.wait_for(lambda: broker.ended() == ["before", "after"], 60, "the second task")
    with Redis(port=old, decode_responses=True) as replica:
        assert replica.info("replication")["role"] == "slave"
    app.close()


def test_client_leaves_a_server_that_became_a_replica(broker: BrokerHarness) -> None:
    # Given a client of an address whose server changes its role, without Sentinel
    client = read_redis_url(broker.server.url).client()
    client.set("key", 1)
    before = client.client_id()

    # When the server is a replica for a while
    broker.redis.replicaof("127.0.0.1", 1)
    with pytest.raises(RedisConnectionError, match="read-only replica"):
        client.set("key", 2)
    broker.redis.replicaof("NO", "ONE")

    # Then the client has a new connection
    client.set("key", 3)
    assert client.client_id() != before


async def test_client_of_an_event_loop_leaves_a_replica(broker: BrokerHarness) -> None:
    async with AsyncRedis.from_pool(read_redis_url(broker.server.url).async_pool()) as client:
        await client.set("key", 1)
        before = await client.client_id()

        broker.redis.replicaof("127.0.0.1", 1)
        with pytest.raises(RedisConnectionError, match="read-only replica"):
            await client.set("key", 2)
        broker.redis.replicaof("NO", "ONE")

        await client.set("key", 3)
        assert await client.client_id() != before


async def test_client_of_an_event_loop_follows_the_sentinels(group: SentinelGroup) -> None:
    async with AsyncRedis.from_pool(read_redis_url(group.url).async_pool(max_connections=2)) as client:
        await client.set("key", 1)
        with group.master() as master:
            assert master.get("key") == "1"


async def test_client_of_an_event_loop_closes_its_connections(group: SentinelGroup) -> None:
    # Given a client that has asked the Sentinels for the master
    with Redis(port=group.sentinel_port, decode_responses=True) as observer:
        before = {client["id"] for client in observer.client_list()}
        async with AsyncRedis.from_pool(read_redis_url(group.url).async_pool()) as client:
            await client.set("key", 1)
            opened = {client["id"] for client in observer.client_list()} - before
            assert opened

        # When it is closed, then so is its connection to the Sentinel
        wait_for(lambda: not opened & {client["id"] for client in observer.client_list()}, 10, "the end")
