"""Annotating chunks by file: each task once, a bad one alone, the window moving on, a stop heard."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.channels import logs_history
from tests.harness.recorded_spans import RecordedSpans
from tests.unit.runs.example_workflow import advance
from tests.unit.to_task.world import JOB, KilledError, World
from worker import tracing
from worker.platform import (
    AuthenticationError,
    ClientConnectionError,
    ClientTimeoutError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    ServerError,
)
from worker.plugins import PluginHostBusyError, PluginHostUnavailableError
from worker.runs.model import Continue, ContinueInParts, Reschedule, Suspend
from worker.testing import image_and_label
from worker.to_task.annotate import annotate
from worker.to_task.ledger import RedisLedger
from worker.to_task.pipeline import Pipeline, _Requests
from worker.to_task.results import MAX_LOGGED_FAILURES, finalize
from worker.to_task.steps import FINALIZE

Make = Callable[..., World]


def failures(world: World) -> dict[int, str]:
    return {failure.task_id: failure.error for failure in world.ledger.failures()}


def test_every_task_gets_its_data_once(make_world: Make) -> None:
    # Given more chunks than the window holds
    world = make_world(75, chunk=10)

    # When the run is worked
    end = world.work()

    # Then every task was written once, with what the plugin made of its file
    assert sorted(world.backend.annotations) == [
        (n, {"from": f"{n}.json"}, "dm_schema_v1") for n in range(1, 76)
    ]
    assert (end.status, end.result) == (
        "SUCCEEDED",
        {
            "status": "SUCCEEDED",
            "message": "Annotated 75 of 75 tasks, 0 failed",
            "total_tasks": 75,
            "success_count": 75,
            "failed_count": 0,
            "failures": [],
        },
    )


def test_the_plugin_is_given_the_task_and_both_files(make_world: Make) -> None:
    world = make_world(1)
    world.work()

    [item] = world.host.items
    task = item.pop("task_data")
    assert item == {
        "primary_file_url": "http://files/1.png",
        "primary_file_name": "1.png",
        "data_file_url": "http://files/1.json",
        "data_file_name": "1.json",
    }
    assert (task["id"], set(task)) == (1, {"id", "data", "data_unit"})


def test_any_schema_is_asked_for_only_when_the_run_does(make_world: Make) -> None:
    world = make_world(1, schema="any")
    world.work()

    assert [schema for _, _, schema in world.backend.annotations] == ["any"]


def test_files_that_are_missing_in_the_task_are_fetched(make_world: Make) -> None:
    world = make_world(3)
    world.backend.files_in_task = False

    assert world.work().result["success_count"] == 3
    assert world.backend.faults.calls["get_data_unit"] == 3


@pytest.mark.parametrize("empty", [{}, [], None])
def test_files_that_are_empty_in_the_task_are_fetched(
    make_world: Make, empty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(3)
    get_task = world.backend.get_task

    def without_files(task: int) -> dict[str, Any]:
        found = get_task(task)
        found["data_unit"]["files"] = empty
        return found

    monkeypatch.setattr(world.backend, "get_task", without_files)

    assert world.work().result["success_count"] == 3
    assert world.backend.faults.calls["get_data_unit"] == 3


def test_an_odd_file_that_a_task_does_not_need_fails_nothing(make_world: Make) -> None:
    world = make_world(2)
    files = world.backend.files
    odd = {"depth": None, "mask": {"url": None}, "notes": 7}
    world.backend.files = lambda task: {**files(task), **odd}

    assert world.work().result["success_count"] == 2


@pytest.mark.parametrize("answers", [["text"], [None], {"ok": {}}, None])
def test_a_hook_that_answers_something_else_fails_its_tasks(make_world: Make, answers: Any) -> None:
    # Given a batch hook of the author's own, whose answers are no results
    world = make_world(1)
    world.host.call_batch = lambda *_: answers  # type: ignore[method-assign]

    world.work()

    [failure] = world.ledger.failures()
    assert failure.error == "the plugin did not answer with one result for each task"


def test_the_plugin_converts_many_tasks_in_one_call(make_world: Make) -> None:
    world = make_world(70, chunk=100)
    world.work()

    assert [size for _, size in world.host.batches] == [32, 32, 6]


def test_many_requests_are_in_flight(make_world: Make) -> None:
    world = make_world(32, chunk=100)
    world.work()

    assert world.backend.peak_in_flight["get_task"] == 32
    assert world.backend.peak_in_flight["annotate_task_data"] == 32


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({}, "the task's data unit has no files"),
        ([{"url": "u", "is_primary": True}], "the task has no file of the specification 'label'"),
        ("nonsense", "the task's data unit has no files"),
    ],
)
def test_a_task_without_its_files_fails_alone(make_world: Make, files: Any, error: str) -> None:
    world = make_world(3)
    good = world.backend.files
    world.backend.files = lambda task: files if task == 2 else good(task)

    end = world.work()

    assert end.status == "SUCCEEDED"
    assert end.result["failures"] == [{"task_id": 2, "error": error}]
    assert sorted(world.backend.annotated) == [1, 3]


def test_a_task_that_the_plugin_cannot_convert_fails_alone(make_world: Make) -> None:
    world = make_world(5)
    world.host.failing = {4}

    end = world.work()

    assert (end.status, end.result["message"]) == ("SUCCEEDED", "Annotated 4 of 5 tasks, 1 failed")
    assert end.result["failures"] == [{"task_id": 4, "error": "ValueError: no digit in it"}]


def log_lines(world: World) -> list[tuple[str, str]]:
    entries = world.redis.xrange(logs_history(JOB))
    return [(fields["level"], fields["line"]) for _, fields in entries if fields.get("source") == "run"]


def test_each_failed_task_stands_in_the_log_once(make_world: Make) -> None:
    world = make_world(30, chunk=10)
    world.host.failing = {4, 25}

    world.work()

    logged = [line for line in log_lines(world) if line[1].startswith("Task ")]
    assert logged == [
        ("warning", "Task 4 failed: ValueError: no digit in it"),
        ("warning", "Task 25 failed: ValueError: no digit in it"),
    ]


def test_the_log_holds_the_first_failed_tasks_and_their_number(make_world: Make) -> None:
    world = make_world(MAX_LOGGED_FAILURES + 50, chunk=40)
    world.host.failing = set(range(1, MAX_LOGGED_FAILURES + 50))

    world.work()

    logged = [line for _, line in log_lines(world) if line.startswith("Task ")]
    assert len(logged) == len(set(logged)) == MAX_LOGGED_FAILURES
    assert f"{MAX_LOGGED_FAILURES + 49} of {MAX_LOGGED_FAILURES + 50} tasks failed" in log_lines(world)[-2][1]


def test_a_task_that_ends_the_plugins_process_fails_alone(make_world: Make) -> None:
    world = make_world(40, chunk=100)
    world.host.crashing = {17}

    world.work()

    assert failures(world) == {17: "ActorDiedError: the process of digits@1.0.0 died"}
    assert world.ledger.counts().success == 39


def test_a_task_that_the_backend_rejects_fails_alone(make_world: Make) -> None:
    world = make_world(3)
    world.backend.faults.fail("get_task", NotFoundError("404 Not Found"), key=1)
    world.backend.faults.fail("annotate_task_data", MalformedResponseError("malformed answer: HTML"), key=2)

    world.work()

    assert failures(world) == {
        1: "NotFoundError: 404 Not Found",
        2: "MalformedResponse: malformed answer: HTML",
    }


def test_all_failed_is_a_failed_run_with_its_counts(make_world: Make) -> None:
    world = make_world(12)
    world.host.failing = set(range(1, 13))

    end = world.work()

    assert end.status == "FAILED"
    assert end.result["error"] == end.result["message"] == "All 12 tasks failed to annotate"
    counts = {name: end.result[name] for name in ("status", "total_tasks", "success_count", "failed_count")}
    assert counts == {"status": "FAILED", "total_tasks": 12, "success_count": 0, "failed_count": 12}
    assert len(end.result["failures"]) == 12


def test_chunks_have_the_priority_of_their_run(make_world: Make) -> None:
    world = make_world(30, priority=6)

    world.work()

    assert {sent.priority for sent in world.sender.of("to_task.annotate")} == {6}


def test_a_chunk_that_begins_publishes_the_next_one(make_world: Make) -> None:
    world = make_world(100, chunk=10)
    world.collect()
    assert world.sender.chunks() == [0, 1]
    assert {sent.queue for sent in world.sender.published if sent.name == "to_task.annotate"} == {"annotate"}
    published: list[list[int]] = []

    def files(data_unit: int) -> Any:
        published.append(world.sender.chunks())
        return image_and_label(data_unit)

    world.backend.files = files

    # When one begins, then another waits in its place before its own tasks are fetched
    assert world.annotate(1) == Suspend()
    assert published[0] == [0, 1, 2]

    # And none follows when it has ended
    assert world.sender.chunks() == [0, 1, 2]


def test_a_run_by_inference_has_one_chunk_in_flight(by_inference: Make) -> None:
    world = by_inference(40, batch=1)
    world.collect()
    assert world.sender.chunks() == [0]

    assert world.annotate_fully(0)[1] == Suspend()

    assert world.sender.chunks() == [0, 1]


def test_other_brokers_have_as_many_chunks_as_one_process(make_world: Make) -> None:
    # Given a broker from which a worker also takes the messages that it cannot begin
    world = make_world(100, chunk=10)
    world.sender.is_redis = False
    world.collect()
    assert world.sender.chunks() == [0, 1, 2]

    assert world.annotate(1) == Suspend()

    assert world.sender.chunks() == [0, 1, 2, 3]


def test_a_redelivered_chunk_skips_what_is_done(make_world: Make) -> None:
    # Given a chunk of which a part is done when its worker dies
    world = make_world(10, chunk=10)
    world.collect()
    world.backend.faults.fail("annotate_task_data", KilledError(), key=7, times=1)
    with pytest.raises(KilledError):
        world.annotate(0)
    first = list(world.backend.annotated)

    # When it is delivered again, twice
    assert world.annotate(0) == Continue(FINALIZE)
    assert world.annotate(0) == Continue(FINALIZE)

    # Then only what was open was written
    assert sorted([*first, 7]) == sorted(world.backend.annotated) == list(range(1, 11))
    assert world.ledger.counts().success == 10


def test_a_redelivered_chunk_publishes_the_next_chunk(make_world: Make, clock: Any) -> None:
    world = make_world(60, chunk=10)
    world.collect()
    world.sender.dies_after = 0
    with pytest.raises(KilledError):
        world.annotate(0)
    world.sender.dies_after = None
    clock.forward(60)

    world.annotate(0)

    assert world.sender.chunks() == [0, 1, 2]


def test_the_sweep_resends_open_chunks_in_their_generation(make_world: Make) -> None:
    # Given a window of which one chunk is done and one has been polled
    world = make_world(60, chunk=10)
    world.collect()
    world.annotate(1)
    advance(world.runs, JOB, "to_task.annotate:2", 0)
    world.sender.published.clear()

    # When the sweep publishes the step at which the run stands
    assert isinstance(world.dispatch_again(), ContinueInParts)

    # Then the open ones are published, none that is done
    sent = {each.kwargs["chunk"]: each.kwargs["generation"] for each in world.sender.published}
    assert sent == {0: 0, 2: 1}


def test_the_sweep_finalizes_when_all_is_done(make_world: Make) -> None:
    world = make_world(10)
    world.collect()
    world.annotate(0)

    assert world.dispatch_again() == Continue(FINALIZE)


def test_the_last_chunk_finalizes_and_the_end_is_written_once(make_world: Make) -> None:
    world = make_world(20)
    world.collect()

    assert [world.annotate(0), world.annotate(1)] == [Suspend(), Continue(FINALIZE)]
    assert finalize(world.run, world.services) == finalize(world.run, world.services)


def test_nothing_is_annotated_after_a_stop(make_world: Make) -> None:
    world = make_world(10)
    world.collect()
    world.end()

    assert annotate(world.run, 0, world.services, world.runtime) == Suspend()
    assert (world.backend.annotations, world.backend.faults.calls["get_task"]) == ([], 0)


def test_a_stop_during_conversion_prevents_the_writes(make_world: Make) -> None:
    world = make_world(10)
    world.collect()
    convert = world.host.call_batch

    def and_stop(*args: Any) -> Any:
        world.end()
        return convert(*args)

    world.host.call_batch = and_stop  # type: ignore[method-assign]

    assert world.annotate(0) == Suspend()
    assert world.backend.annotations == []


def test_a_stop_during_writes_prevents_the_next_batch(make_world: Make) -> None:
    world = make_world(100, chunk=100)
    world.collect()
    world.backend.before_annotation = lambda task: world.end() if task == 5 else None

    assert world.annotate(0) == Suspend()
    assert set(world.backend.annotated) <= set(range(1, 65))


def test_a_pass_out_of_time_hands_the_rest_on(make_world: Make) -> None:
    # Given no time at all
    world = make_world(100, chunk=100)
    world.collect()
    world.settings.worker_visibility_timeout_seconds = 0.0

    # When the chunk is delivered
    countdowns, outcome = world.annotate_fully(0)

    # Then each delivery worked one batch, and the next came at once
    assert (countdowns, outcome) == ([0.0, 0.0, 0.0], Continue(FINALIZE))
    assert sorted(world.backend.annotated) == list(range(1, 101))


@pytest.mark.parametrize("error", [ClientTimeoutError(), ClientConnectionError(), MalformedResponseError()])
def test_an_error_that_passes_is_tried_again_later(make_world: Make, error: Exception) -> None:
    world = make_world(10)
    world.collect()
    world.backend.faults.fail("annotate_task_data", error, key=3, times=2)

    countdowns, outcome = world.annotate_fully(0)

    assert (countdowns, outcome) == ([2.0, 4.0], Continue(FINALIZE))
    assert world.backend.faults.calls["get_task"] == 12
    assert world.ledger.counts().success == 10


def test_a_task_fails_after_five_attempts_that_count(make_world: Make) -> None:
    world = make_world(10)
    world.collect()
    world.backend.faults.fail("annotate_task_data", ClientTimeoutError("408 Request Timeout"), key=3)

    countdowns, _ = world.annotate_fully(0)

    assert countdowns == [2.0, 4.0, 8.0, 16.0]
    assert failures(world) == {3: "ClientTimeoutError: 408 Request Timeout"}
    assert world.backend.faults.calls["annotate_task_data"] == 9 + 5


def test_a_pass_goes_on_while_no_task_is_active_for_a_moment(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a service that is sent one request at a time, and a step that looks while none is under way
    world = make_world(4)
    world.collect()
    monkeypatch.setattr(world.backend.on_loop, "capacity", lambda *_: 1)
    between_tasks, looked = threading.Event(), threading.Event()
    fetch_more, call_plugin = _Requests._fetch_more, Pipeline._call_plugin

    def slow_fetch_more(requests: _Requests) -> None:
        between_tasks.set()
        looked.wait(0.1)
        fetch_more(requests)

    def late_call_plugin(pipeline: Pipeline, *args: Any) -> bool:
        has_called = call_plugin(pipeline, *args)
        if has_called:
            between_tasks.clear()
            between_tasks.wait(1)
        return has_called

    monkeypatch.setattr(_Requests, "_fetch_more", slow_fetch_more)
    monkeypatch.setattr(Pipeline, "_call_plugin", late_call_plugin)

    # When the chunk is annotated
    outcome = world.annotate(0)

    # Then one pass annotates all of it, and nothing of the pass runs on
    assert outcome == Continue(FINALIZE)
    assert sorted(world.backend.annotated) == [1, 2, 3, 4]


def test_a_500_is_tried_once_more(make_world: Make) -> None:
    world = make_world(10)
    world.collect()
    world.backend.faults.fail("annotate_task_data", ServerError("500 Internal Server Error"), key=3)

    countdowns, _ = world.annotate_fully(0)

    assert countdowns == [2.0]
    assert failures(world) == {3: "ServerError: 500 Internal Server Error"}
    assert world.backend.faults.calls["annotate_task_data"] == 9 + 2


@pytest.mark.parametrize(
    "error",
    [RateLimitError(), ServerError("", 502), ServerError("", 503), ServerError("", 504)],
    ids=["429", "502", "503", "504"],
)
def test_a_backend_that_says_later_is_no_attempt_at_a_task(make_world: Make, error: Exception) -> None:
    # Given a backend that postpones a task more often than any attempt counts
    world = make_world(10)
    world.collect()
    world.backend.faults.fail("annotate_task_data", error, key=3, times=12)

    countdowns, outcome = world.annotate_fully(0)

    assert (countdowns, outcome) == ([1.0] * 12, Continue(FINALIZE))
    assert world.ledger.counts().success == 10


def test_a_500_that_begins_an_outage_is_no_attempt_at_a_task(make_world: Make) -> None:
    # Given an outage that begins amid the writes of a chunk
    world = make_world(10)
    world.collect()
    faults, error = world.backend.faults, ServerError("500 Internal Server Error")
    faults.rule = lambda _call: error if faults.calls["annotate_task_data"] > 5 else None
    with pytest.raises(ServerError):
        world.annotate(0)

    # When each task that was not written is answered 500 once more, as the outage ends
    faults.rule = lambda _call: None
    for task in range(1, 11):
        faults.fail("annotate_task_data", error, key=task, times=1)
    world.annotate_fully(0)

    # Then none has failed
    assert world.ledger.counts().success == 10


@pytest.mark.parametrize(("asked", "countdown"), [(90, 90), (0, 1), (86_400, 300)])
def test_retry_after_is_the_countdown_of_the_chunk(make_world: Make, asked: float, countdown: float) -> None:
    world = make_world(10)
    world.collect()
    world.backend.faults.fail("get_task", RateLimitError(retry_after=asked), key=3, times=1)

    assert world.annotate(0) == Reschedule(countdown, is_asked_for=True)


def test_broken_connections_count_for_none_while_it_says_later(make_world: Make) -> None:
    world = make_world(2)
    world.collect()
    world.backend.faults.fail("get_task", ClientConnectionError(), key=1, times=10)
    world.backend.faults.fail("get_task", RateLimitError(), key=2, times=10)

    countdowns, _ = world.annotate_fully(0)

    assert countdowns == [1.0] * 10
    assert world.ledger.counts().success == 2


def test_what_failed_before_waits_until_the_rest_was_tried(make_world: Make) -> None:
    # Given a chunk of three batches, of which a task fails for now, and time for one batch a pass
    world = make_world(80, chunk=100)
    world.collect()
    world.settings.worker_visibility_timeout_seconds = 0.0
    world.backend.faults.fail("annotate_task_data", ServerError(), key=3, times=1)

    countdowns, _ = world.annotate_fully(0)

    assert countdowns == [0.0, 0.0, 2.0]


@pytest.mark.parametrize("error", [ClientConnectionError(), MalformedResponseError("malformed answer: HTML")])
def test_a_backend_that_is_away_is_no_attempt_at_a_task(make_world: Make, error: Exception) -> None:
    world = make_world(10)
    world.collect()
    world.backend.faults.unavailable = error

    for _ in range(10):
        with pytest.raises(type(error)):
            world.annotate(0)

    world.backend.faults.unavailable = None
    assert world.annotate(0) == Continue(FINALIZE)
    assert world.ledger.counts().success == 10


def test_a_broken_connection_counts_while_the_backend_answers(make_world: Make) -> None:
    world = make_world(1)
    world.collect()
    world.backend.faults.fail("get_task", ClientConnectionError("hung up"), key=1)

    world.annotate_fully(0)

    assert failures(world) == {1: "ClientConnectionError: hung up"}


def test_a_plugin_host_that_is_away_brings_the_step_back(make_world: Make) -> None:
    world = make_world(40, chunk=100)
    world.collect()
    convert, calls = world.host.call_batch, []

    def lost(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise PluginHostUnavailableError
        return convert(*args)

    world.host.call_batch = lost  # type: ignore[method-assign]

    with pytest.raises(PluginHostUnavailableError):
        world.annotate(0)
    # What was under way has ended with the step, and is recorded
    assert len(world.backend.annotations) == world.ledger.counts().success == 32
    assert world.annotate(0) == Continue(FINALIZE)
    assert sorted(world.backend.annotated) == list(range(1, 41))


@pytest.mark.parametrize("answers", [[], None, [{"ok": {}}] * 7, "nonsense"])
def test_a_plugin_that_answers_nonsense_fails_its_tasks(make_world: Make, answers: Any) -> None:
    world = make_world(3)
    world.host.call_batch = lambda *args: answers  # type: ignore[method-assign]

    world.work()

    assert set(failures(world).values()) == {"the plugin did not answer with one result for each task"}


def test_progress_and_metrics_follow_the_ledger(make_world: Make) -> None:
    world = make_world(40, chunk=10)
    world.host.failing = {1}
    world.collect()
    world.annotate_fully(0)

    snapshot = world.runs.progress.snapshot(JOB, {"annotate_task_data": 100})

    assert snapshot.metrics["record"]["steps"]["annotate_task_data"].keys() == {
        "success", "failed", "stand_by",
    }  # fmt: skip
    world.annotate_published()
    snapshot = world.runs.progress.snapshot(JOB, {"annotate_task_data": 100})
    assert snapshot.metrics["record"]["steps"]["annotate_task_data"] == {
        "success": 39, "failed": 1, "stand_by": 0,
    }  # fmt: skip
    assert snapshot.progress["current_progress"]["percent"] == 100


def test_a_redis_that_is_away_loses_no_task(make_world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a ledger that cannot be written once
    world = make_world(10)
    world.collect()
    record = RedisLedger.record

    def lost(self: RedisLedger, marks: Any) -> bool:
        monkeypatch.setattr(RedisLedger, "record", record)
        raise RedisConnectionError

    monkeypatch.setattr(RedisLedger, "record", lost)

    # When the chunk is delivered until it is done
    with pytest.raises(RedisConnectionError):
        world.annotate(0)
    assert world.annotate(0) == Continue(FINALIZE)

    # Then every task is counted once
    assert world.ledger.counts().success == 10


def test_a_rejected_token_ends_the_run_and_fails_no_task(make_world: Make) -> None:
    world = make_world(40, chunk=40)
    world.collect()
    world.backend.before_annotation = lambda task: setattr(
        world.backend.faults, "unavailable", AuthenticationError()
    )
    with pytest.raises(AuthenticationError):
        world.annotate(0)
    assert world.record()["failed"] == "0"


def test_a_task_alone_rejected_for_its_token_fails_alone(make_world: Make) -> None:
    world = make_world(3)
    world.backend.faults.fail("get_task", AuthenticationError(), key=2)
    end = world.work()
    assert (end.result["success_count"], end.result["failed_count"]) == (2, 1)
    assert end.result["failures"][0]["error"].startswith("AuthenticationError")


def test_a_chunk_is_rescheduled_while_the_plugin_is_busy(make_world: Make) -> None:
    world = make_world(3)
    world.collect()
    call_batch, busy = world.host.call_batch, [True, True]

    def sometimes(*given: Any) -> Any:
        if busy:
            busy.pop()
            raise PluginHostBusyError("digits@1.0.0: its process is busy")
        return call_batch(*given)

    world.host.call_batch = sometimes  # type: ignore[method-assign]
    countdowns, _ = world.annotate_fully(0)
    assert len(countdowns) == 2
    assert (world.record()["success"], world.record()["failed"]) == ("3", "0")
    assert world.ledger.open_tasks(0) == []


def test_chunk_is_one_span_with_its_counts(spans: RecordedSpans, make_world: Make) -> None:
    # Given a chunk with a task that fails, and requests that are spans where they may
    world = make_world(10, chunk=10)
    world.host.failing.add(3)
    fetch, traced = world.backend.on_loop.get_task, list[bool]()

    async def get_task(task: int) -> Any:
        with tracing.request_span("backend", "GET", f"tasks/{task}/") as span:
            traced.append(bool(int(span.headers["traceparent"][-2:], 16) & 1))
            return await fetch(task)

    world.backend.on_loop.get_task = get_task

    # When it is worked
    world.work()

    # Then it is one span, beside that of the request of one task
    ended = [span for span in spans.ended() if "synapse.tasks.open" in (span.attributes or {})]
    counts = {
        name.removeprefix("synapse.tasks."): value
        for name, value in (ended[0].attributes or {}).items()
        if name.startswith("synapse.tasks.")
    }
    assert len(ended) == 1
    assert counts == {"open": 10, "done": 9, "failed": 1, "postponed": 0, "deferred": 0, "retryable": 0}
    assert sorted(traced) == [False] * 9 + [True]
    assert [span.name for span in spans.ended() if span.name.startswith("GET")] == ["GET tasks/{id}/"]
