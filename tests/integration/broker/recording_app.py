"""A Celery app on the transport under test, whose tasks record in Redis when they start and end."""

import os
import time
from typing import Any

from celery import Celery
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from shared.redis_url import read_redis_url
from worker.broker import RejectedMessage, message_rejected
from worker.workflow.dead_letters import DeadLetters

URL = os.environ["TEST_APP_URL"]

app = Celery("recording", broker=URL, amqp="worker.broker:AMQP")
app.conf.update(
    accept_content=["json"],
    worker_consumer="worker.broker.consumer:Consumer",
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=False,
    worker_prefetch_multiplier=int(os.environ.get("TEST_APP_PREFETCH", "1")),
    task_default_queue="first",
    task_create_missing_queues=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    broker_transport_options={
        "visibility_timeout": float(os.environ["TEST_APP_VISIBILITY_TIMEOUT"]),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "health_check_interval": 15,
    },
)
redis = read_redis_url(URL).client(
    decode_responses=True, retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=10)
)


@message_rejected.connect
def add_dead_letter(rejected: RejectedMessage, **_: Any) -> None:
    DeadLetters(redis).add(rejected.task, rejected.body, rejected.reason, message_id=rejected.message_id)


@app.task(name="record", bind=True)
def record(self: Any, value: Any, seconds: float = 0) -> None:
    redis.rpush("started", f"{value} {self.request.delivery_info['redelivered']} {time.time()}")
    redis.rpush("etas", self.request.eta or "none")
    redis.rpush("deliveries", self.request.properties["deliveries"])
    time.sleep(seconds)
    redis.rpush("ended", value)


@app.task(name="noop")
def noop(*_: Any, **__: Any) -> None:
    pass


if os.environ.get("TEST_APP_NEWER_RELEASE") == "1":

    @app.task(name="step.of_a_newer_release")
    def step_of_a_newer_release(value: str) -> None:
        redis.rpush("ended", value)


@app.task(name="sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)
