"""The sweep, and what app and environment have to do with each other."""

import heapq
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared import redis_pools
from shared.channels import job_key
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.workflow.harness import Backend, FakeServices, TaskRunner
from worker import maintenance
from worker.runs.keys import heartbeats_key, newest_field, polls_key, run_key
from worker.runs.reports.sender import send_report

MESSAGE: dict[str, Any] = {"plugin": "digits@1.0.0", "agent": 1}


@pytest.fixture(autouse=True)
def swept(services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "services", lambda: services)


def test_silent_run_gets_its_message_again(
    task_runner: TaskRunner, sender: RecordingPublisher, clock: Clock
) -> None:
    task_runner.deliver("test.deploy", job=1, **MESSAGE)
    sender.published.clear()
    clock.forward(80)

    assert maintenance.sweep() == 1
    assert [(sent.name, sent.kwargs["job"]) for sent in sender.published] == [("deploy.initialize", "1")]


@pytest.mark.parametrize(("url", "has_work"), [(None, False), ("https://receiver.example", True)])
def test_ends_for_a_webhook_are_taken_over_where_there_is_one(
    services: FakeServices, url: str | None, has_work: bool
) -> None:
    services.settings.worker_webhook_url = url

    assert ("webhooks" in [work.name for work in maintenance.works()]) is has_work


def test_an_unreadable_run_does_not_delay_the_others(
    task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher, clock: Clock
) -> None:
    for job in range(1, 6):
        task_runner.deliver("test.deploy", job=job, **MESSAGE)
    services.redis.hset(run_key("1"), "message", "rubbish")
    sender.published.clear()
    clock.forward(80)

    maintenance.sweep()

    assert {sent.kwargs["job"] for sent in sender.of("deploy.initialize")} == {"2", "3", "4", "5"}


def test_a_run_with_a_key_of_another_type_delays_no_others(
    task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher, clock: Clock
) -> None:
    for job in range(1, 4):
        task_runner.deliver("test.deploy", job=job, **MESSAGE)
    services.redis.delete(run_key("1"))
    services.redis.set(run_key("1"), "rubbish")
    sender.published.clear()
    clock.forward(80)

    maintenance.sweep()

    assert {sent.kwargs["job"] for sent in sender.of("deploy.initialize")} == {"2", "3"}


@pytest.mark.parametrize("damaged", ["rubbish", b"\xff", b'{"task": "\xff"}'], ids=repr)
def test_a_damaged_run_ends_failed_and_that_is_reported(
    damaged: str | bytes,
    task_runner: TaskRunner,
    services: FakeServices,
    sender: RecordingPublisher,
    backend: Backend,
    clock: Clock,
) -> None:
    # Given a run whose record is damaged
    task_runner.deliver("test.deploy", job=1, **MESSAGE)
    services.redis.hset(run_key("1"), "message", damaged)
    sender.published.clear()
    clock.forward(80)

    # When the sweep finds it overdue
    maintenance.sweep()
    assert send_report("1", 0, services.runs, services.backend) is None

    # Then it has ended, and the next sweep has nothing to do
    [patch] = backend.patches
    assert patch == {"status": "FAILED", "result": {"error": "the record of job 1's run is damaged"}}
    clock.forward(800)
    assert maintenance.sweep() == 0


def test_a_run_with_a_damaged_generation_ends_failed(
    task_runner: TaskRunner, services: FakeServices, clock: Clock
) -> None:
    task_runner.deliver("test.deploy", job=1, **MESSAGE)
    services.redis.hset(polls_key("1"), newest_field("deploy.initialize"), b"\xff")
    clock.forward(80)

    maintenance.sweep()

    assert services.redis.hget(job_key("1"), "status") == "FAILED"


def test_a_member_that_is_no_text_delays_no_others(
    task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher, clock: Clock
) -> None:
    # Given a heartbeat of a job whose name is no UTF-8
    task_runner.deliver("test.deploy", job=1, **MESSAGE)
    services.redis.zadd(heartbeats_key(), {b"run:\xff": 0})
    sender.published.clear()
    clock.forward(80)

    # When the sweep finds it overdue
    maintenance.sweep()

    # Then it is removed, as any that has no run, and the other run goes on
    assert [sent.kwargs["job"] for sent in sender.of("deploy.initialize")] == ["1"]
    assert services.redis.zscore(heartbeats_key(), b"run:\xff") is None


def test_a_run_of_a_newer_release_ends_after_a_silent_day(
    task_runner: TaskRunner, services: FakeServices, clock: Clock
) -> None:
    # Given a run that only newer workers can read, and whose messages are lost
    task_runner.deliver("test.deploy", job=1, **MESSAGE)
    stored = json.loads(services.redis.hget(run_key("1"), "message"))
    stored["kwargs"]["dry_run"] = True
    services.redis.hset(run_key("1"), "message", json.dumps(stored))

    # Then the sweep leaves it alone for a day, and ends it after that
    clock.forward(80_000)
    maintenance.sweep()
    assert not services.runs.store.has_ended("1")
    clock.forward(10_000)
    maintenance.sweep()
    assert services.redis.hget(job_key("1"), "status") == "FAILED"
    assert services.redis.hget(job_key("1"), "error") == "the run of job 1 is of a newer release"


def test_a_lost_message_of_a_rejected_job_is_published_again(
    task_runner: TaskRunner, sender: RecordingPublisher, backend: Backend, clock: Clock
) -> None:
    # Given a rejected message whose job was never set FAILED, because that message was lost
    task_runner.deliver("test.deploy", job=7, plugin="digits@1.0.0", agent="none")
    [lost] = sender.of("runs.refuse_job")
    sender.published.clear()
    clock.forward(80)

    # When the sweep comes
    assert maintenance.sweep() == 1

    # Then the job is failed after all, and the next sweep finds nothing
    [again] = sender.of("runs.refuse_job")
    assert again.kwargs == lost.kwargs
    task_runner.deliver("runs.refuse_job", **again.kwargs)
    assert backend.status == "FAILED"
    clock.forward(800)
    assert maintenance.sweep() == 0


def test_sweep_survives_what_goes_wrong(
    monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], object]], None]
) -> None:
    errors = [RedisConnectionError("away"), ValueError("a bug")]
    sweeps: list[int] = []

    def sweep() -> int:
        sweeps.append(1)
        if errors:
            raise errors.pop()
        return 0

    monkeypatch.setattr(maintenance, "sweep", sweep)
    monkeypatch.setattr(maintenance, "remove_old", lambda: None)
    monkeypatch.setattr(maintenance, "SECONDS_BETWEEN_SWEEPS", 0.01)
    monkeypatch.setattr(maintenance, "FAILED_SECONDS", 0.01)
    sweeper = maintenance.Maintenance()
    sweeper.start()
    eventually(lambda: len(sweeps) > 3)
    sweeper.stop()

    assert sweeper._threads
    assert not any(thread.is_alive() for thread in sweeper._threads)


def test_a_ray_that_hangs_delays_no_sweep(
    services: FakeServices,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[[Callable[[], object]], None],
) -> None:
    # Given packages whose pinning does not return
    services.settings.ray_address = "127.0.0.1:6379"
    answered = threading.Event()
    sweeps: list[int] = []
    monkeypatch.setattr(maintenance, "remove_old", lambda: None)
    monkeypatch.setattr(maintenance, "pin_packages", lambda: answered.wait(30))
    monkeypatch.setattr(maintenance, "sweep", lambda: sweeps.append(1))
    monkeypatch.setattr(maintenance, "SECONDS_BETWEEN_SWEEPS", 0.01)

    # When the maintenance runs, then it sweeps all the same
    maintained = maintenance.Maintenance()
    maintained.start()
    eventually(lambda: len(sweeps) > 3)
    assert not answered.is_set()

    answered.set()
    maintained.stop()


class Fleet:
    """Workers that look at their works when it is time, by a clock that is moved on to the next look."""

    def __init__(self, clock: Clock, workers: int, function: Callable[[], object], **seconds: float) -> None:
        self.clock = clock
        self.works = [maintenance.Work("sweep", function, **seconds) for _ in range(workers)]
        self._looks = [(float(at), at) for at in range(workers)]
        self._now = 0.0

    def run(self, seconds: float) -> None:
        """Let so many seconds pass."""
        until = self._now + seconds
        while min(self._looks)[0] <= until:
            at, number = heapq.heappop(self._looks)
            self.clock.forward(at - self._now)
            self._now = at
            heapq.heappush(self._looks, (at + self.works[number].do(), number))
        self.clock.forward(until - self._now)
        self._now = until

    def kill(self, work: maintenance.Work) -> None:
        number = self.works.index(work)
        self._looks = [look for look in self._looks if look[1] != number]
        heapq.heapify(self._looks)

    def holder(self) -> maintenance.Work:
        [holder] = [work for work in self.works if work._election and work._election._is_holder]
        return holder


OFTEN = {"seconds": 3.0, "lease_seconds": 6.0}
"""Of a work that is done often, with a lease that is soon over."""


def commands_of(
    redis: FakeRedis, clock: Clock, workers: int, monkeypatch: pytest.MonkeyPatch, **seconds: float
) -> int:
    """The commands that so many workers send in ten minutes; a script is three."""
    redis.flushall()
    counted = 0
    execute = FakeRedis.execute_command

    def counting(self: FakeRedis, *args: object, **options: object) -> object:
        nonlocal counted
        counted += 3 if args[0] == "EVALSHA" else 1
        return execute(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FakeRedis, "execute_command", counting)
        Fleet(clock, workers, maintenance.sweep, **seconds).run(600)
    return counted


@pytest.mark.parametrize("seconds", [{}, OFTEN], ids=["sweep", "work done often"])
def test_ten_workers_cost_what_one_does(
    redis: FakeRedis, clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]
) -> None:
    one, ten = (commands_of(redis, clock, workers, monkeypatch, **seconds) for workers in (1, 10))
    assert ten <= 1.7 * one


@pytest.mark.parametrize("seconds", [{}, OFTEN], ids=["sweep", "work done often"])
def test_one_worker_at_a_time_does_a_work_as_often_as_before(clock: Clock, seconds: dict[str, float]) -> None:
    done: list[float] = []
    Fleet(clock, 10, lambda: done.append(clock.ahead), **seconds).run(600)
    gaps = {round(after - before, 3) for before, after in pairwise(done)}
    assert gaps == {seconds.get("seconds", maintenance.SECONDS_BETWEEN_SWEEPS)}


def test_the_works_of_a_worker_share_a_connection(
    monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], object]], None]
) -> None:
    # Given works that look at the same moment
    shared: dict[str, bool] = {}

    class Work:
        def __init__(self, name: str) -> None:
            self.name = name

        def do(self) -> float:
            shared[self.name] = getattr(redis_pools._thread, "is_sharing", False)
            return 600.0

        def resign(self) -> None:
            shared.setdefault(self.name, False)

    monkeypatch.setattr(maintenance, "works", lambda: [Work("sweep"), Work("retention")])
    monkeypatch.setattr(maintenance, "SECONDS_BETWEEN_SWEEPS", 0.0)
    monkeypatch.setattr(maintenance.Maintenance, "stop", lambda self: self._stop.set())

    # When they are done, then their threads share connections
    running = maintenance.Maintenance()
    running.start()
    eventually(lambda: len(shared) == 2)
    running.stop()
    assert shared == {"sweep": True, "retention": True}


def test_a_worker_that_starts_anew_waits_for_a_short_lease_only(clock: Clock) -> None:
    # Given the only worker, which has died
    done: list[float] = []
    fleet = Fleet(clock, 1, lambda: None, **OFTEN)
    fleet.run(60)
    fleet.kill(fleet.holder())

    # When another one starts, then it does the work as soon as the lease is over
    Fleet(clock, 1, lambda: done.append(clock.ahead), **OFTEN).run(OFTEN["lease_seconds"] + 1)
    assert done


def test_a_worker_that_dies_is_replaced_within_seconds(clock: Clock) -> None:
    # Given a worker that does the work of three
    done: list[float] = []
    fleet = Fleet(clock, 3, lambda: done.append(clock.ahead))
    fleet.run(60)

    # When it dies, then another one goes on
    fleet.kill(fleet.holder())
    before = len(done)
    fleet.run(maintenance.LEASE_SECONDS + 1)
    assert len(done) > before


def test_a_worker_that_stops_leaves_its_work_at_once(clock: Clock, redis: FakeRedis) -> None:
    fleet = Fleet(clock, 2, lambda: None)
    fleet.run(60)
    fleet.holder().resign()
    assert redis.keys("synapse:maintenance:*") == []


def test_a_work_that_fails_on_one_worker_is_done_by_another(clock: Clock) -> None:
    # Given a worker whose broker cannot be reached, and one without that trouble
    fleet = Fleet(clock, 2, lambda: None)
    tried: list[str] = []

    def fail() -> None:
        tried.append("failed")
        raise OperationalError("the broker is unavailable")

    fleet.works[0]._function = fail
    fleet.works[1]._function = lambda: tried.append("done")

    # When they run
    fleet.run(60)

    # Then the other one has the work
    assert tried[0] == "failed"
    assert tried.count("done") > 5


def loaded(**environment: str) -> subprocess.CompletedProcess[str]:
    """Load the app in a process of its own, as `celery -A worker` does."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    code = (
        "from celery.app.utils import find_app; app = find_app('worker');"
        "app.loader.import_default_modules(); print(*app.tasks)"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_app_holds_the_contracts_tasks(tmp_path: Path) -> None:
    process = loaded(SYNAPSE_HOST="http://x", SYNAPSE_ACCESS_TOKEN="hush-hush", PLUGINS_DIR=str(tmp_path))

    assert process.returncode == 0, process.stderr
    tasks = set(process.stdout.split())
    assert {"deploy", "to_task", "stop", "runs.report", "deploy.register", "to_task.finalize"} <= tasks
    assert not [name for name in tasks if name.startswith("celery.")]


def test_a_missing_setting_is_one_clear_configuration_error(tmp_path: Path) -> None:
    process = loaded(SYNAPSE_ACCESS_TOKEN="hush-hush", PLUGINS_DIR=str(tmp_path))

    assert process.returncode == 78
    assert process.stderr.splitlines() == [
        "synapse-worker cannot start:",
        "SYNAPSE_HOST is not set: Base URL of the platform's backend.",
    ]
