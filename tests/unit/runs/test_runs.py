"""Reports are published once, listeners are notified, and overdue runs are recovered."""

import json
from collections.abc import Callable
from typing import Any

from fakeredis import FakeRedis

from shared.channels import events_channel
from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher, RecordingReports
from tests.unit.conftest import Clock
from tests.unit.runs.example_workflow import DEPLOY, FIRST, advance, end_by_an_older_worker, report
from worker.runs.keys import heartbeats_key
from worker.runs.model import STOPPED, ClaimStatus, Continue, ContinueInParts, End, Run
from worker.runs.runs import Runs, recover_run
from worker.testing import FakeBackend

SPREAD = DEPLOY.step("to_task.spread", 20, queue="annotate")
PART = DEPLOY.step("to_task.part", 20, queue="parts", has_parts=True)
LAST = DEPLOY.step("to_task.last", 30)


Eventually = Callable[[Callable[[], object]], None]


def test_lock_is_shorter_than_the_visibility_timeout(runs: Runs) -> None:
    assert runs.timing.lock_seconds < runs.timing.visibility_timeout < runs.timing.heartbeat_grace_seconds


def test_run_that_never_began_gets_its_first_step(
    runs: Runs, run: Run, publisher: RecordingPublisher
) -> None:
    recover_run("42", runs)

    assert [(sent.name, sent.queue) for sent in publisher.published] == [("deploy.initialize", "deploy")]


def test_steps_have_the_priority_of_their_run(
    runs: Runs, deploy: DeployMessage, publisher: RecordingPublisher
) -> None:
    runs.store.accept(deploy, "deploy", 6)

    recover_run("42", runs)
    runs.continue_with(runs.store.load("42"), Continue(FIRST))

    assert [(sent.name, sent.priority) for sent in publisher.published] == [
        ("deploy.initialize", 6),
        ("deploy.first", 6),
    ]


def test_run_gets_the_step_at_which_it_stands(runs: Runs, run: Run, publisher: RecordingPublisher) -> None:
    runs.store.claim_step("42", FIRST, "", "me", 5, 0, False)
    advance(runs, "42", FIRST.name, 0)

    recover_run("42", runs)

    assert [(sent.name, sent.kwargs) for sent in publisher.published] == [
        ("deploy.first", {"job": "42", "generation": 1})
    ]


def test_step_with_a_queue_of_its_own_is_recovered_there(
    runs: Runs, run: Run, publisher: RecordingPublisher
) -> None:
    runs.store.claim_step("42", SPREAD, "", "me", 5, 0, False)

    recover_run("42", runs)

    assert publisher.published[0].queue == "annotate"


def dispatch_two_parts(runs: Runs) -> bool:
    run = runs.store.claim_step("42", FIRST, "", "me", 5, 0, False).run
    assert run is not None
    return runs.continue_with(
        run, ContinueInParts(SPREAD, [Continue(PART, {"part": 0}), Continue(PART, {"part": 1})])
    )


def test_a_step_that_dispatches_parts_publishes_each(
    runs: Runs, run: Run, publisher: RecordingPublisher
) -> None:
    assert dispatch_two_parts(runs), "the lock is released with that"

    sent = [(each.name, each.queue, each.kwargs) for each in publisher.published]
    assert sent == [("to_task.part", "parts", {"job": "42", "part": part}) for part in (0, 1)]


def test_a_run_whose_parts_are_dispatched_stands_at_their_step(
    runs: Runs, run: Run, publisher: RecordingPublisher, redis: FakeRedis
) -> None:
    # Given a run whose parts are in flight
    dispatch_two_parts(runs)
    publisher.published.clear()

    # When the sweep finds it overdue
    recover_run("42", runs)

    # Then that step is published, on its queue, and an earlier one is dropped
    assert [(sent.name, sent.queue) for sent in publisher.published] == [("to_task.spread", "annotate")]
    assert redis.hget("synapse:jobs:{42}", "step") == "to_task.spread"
    late = runs.store.claim_step("42", FIRST, "", "late", 5, 0, False)
    assert late.status is ClaimStatus.SUPERSEDED


def test_a_run_whose_parts_are_done_already_does_not_move_back(
    runs: Runs, run: Run, redis: FakeRedis
) -> None:
    # Given a step that has published its parts, on a broker that is another Redis than that of the runs
    begun = runs.store.claim_step("42", FIRST, "", "me", 5, 0, False).run
    assert begun is not None
    assert begun.lease is not None

    # When the parts are done and the step after them begins before the first one has ended
    runs.store.claim_step("42", LAST, "", "other", 5, 0, False)
    assert runs.store.end_step("42", begun.lease, 0.0, None, SPREAD)

    # Then the run stands at the last one
    assert redis.hget("synapse:jobs:{42}", "step") == LAST.name
    assert runs.store.load("42").position == LAST.position


def test_an_ended_run_does_not_move_on(runs: Runs, run: Run, redis: FakeRedis) -> None:
    # Given a run that is stopped amid a step
    begun = runs.store.claim_step("42", FIRST, "", "me", 5, 0, False).run
    assert begun is not None
    runs.finish("42", STOPPED)

    # When the step dispatches parts
    runs.continue_with(begun, ContinueInParts(SPREAD, [Continue(PART)]))

    # Then its record shows where it was stopped
    assert redis.hget("synapse:jobs:{42}", "step") == "deploy.first"


def test_ended_run_gets_its_report(runs: Runs, run: Run, reports: RecordingReports) -> None:
    end_by_an_older_worker(runs, "42")

    recover_run("42", runs)

    assert reports == [("42", 0.0)]


def test_a_report_that_waits_for_the_backend_is_not_hastened(
    runs: Runs, run: Run, reports: RecordingReports, clock: Clock
) -> None:
    runs.finish("42", End(JobStatus.FAILED, {}))
    runs.outbox.postpone("42", 200)
    clock.forward(100)

    recover_run("42", runs)

    assert reports == [("42", 0.0)]
    assert runs.outbox.take_over() == []


def test_reported_run_has_no_heartbeat(
    runs: Runs, run: Run, publisher: RecordingPublisher, redis: FakeRedis
) -> None:
    runs.store.finish("42", End(JobStatus.FAILED, {}))
    runs.store.mark_reported("42")
    runs.heartbeats.schedule("run:42")

    recover_run("42", runs)

    assert publisher.published == []
    assert redis.zcard(heartbeats_key()) == 0


def test_unknown_run_has_no_heartbeat(runs: Runs, redis: FakeRedis, publisher: RecordingPublisher) -> None:
    runs.heartbeats.schedule("run:nobody")

    recover_run("nobody", runs)

    assert redis.zcard(heartbeats_key()) == 0


def test_listeners_get_what_changes(runs: Runs, run: Run, redis: FakeRedis) -> None:
    pubsub = redis.pubsub()
    pubsub.subscribe(events_channel("42"))
    runs.mark_running(run)
    runs.set_progress(run, "deploy", 50)
    runs.set_progress(run, "deploy", 50)
    runs.set_metrics(run, "deploy", replicas=2)
    runs.events.message("42", "hello", step="deploy")

    heard: list[dict[str, Any]] = []
    while (message := pubsub.get_message()) is not None:
        if message["type"] == "message":
            heard.append(json.loads(message["data"]))
    pubsub.close()

    assert heard == [
        {"type": "state", "status": "RUNNING"},
        {"type": "progress", "step": "deploy", "percent": 50, "overall": 47.5},
        {"type": "metrics", "step": "deploy", "metrics": {"replicas": 2}},
        {"type": "message", "level": "info", "step": "deploy", "content": "hello"},
    ]


def test_many_changes_are_one_report_and_one_patch(
    runs: Runs, run: Run, backend: FakeBackend, reports: RecordingReports
) -> None:
    runs.mark_running(run)
    for percent in range(1, 100):
        runs.set_progress(run, "deploy", percent)

    report("42", runs, backend)

    assert reports == [("42", 0.0)]
    assert [
        patch["progress_record"]["record"]["steps"]["deploy"]["percent"] for patch in backend.patches
    ] == [99]


def test_change_after_a_report_is_reported_after_a_second(
    runs: Runs, run: Run, backend: FakeBackend, reports: RecordingReports
) -> None:
    runs.mark_running(run)
    report("42", runs, backend)
    reports.clear()

    runs.set_progress(run, "deploy", 10)

    assert reports == [("42", 1.0)]


def test_report_of_a_dead_worker_is_taken_over_by_one_other(runs: Runs, run: Run, clock: Clock) -> None:
    runs.mark_running(run)
    early = runs.outbox.take_over()
    clock.forward(6)

    assert (early, runs.outbox.take_over(), runs.outbox.take_over()) == ([], ["42"], [])


def test_reported_run_is_no_longer_overdue(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    report("42", runs, backend)

    assert runs.redis.zcard("synapse:live") == 0


def test_late_messages_of_an_ended_run_send_no_further_reports(
    runs: Runs, run: Run, reports: RecordingReports
) -> None:
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))

    runs.ensure_end_reported("42")
    runs.ensure_end_reported("42")

    assert reports == [("42", 0.0)]


def test_the_end_does_not_wait_for_an_earlier_report(runs: Runs, run: Run, reports: RecordingReports) -> None:
    runs.set_progress(run, "deploy", 10)
    reports.clear()

    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))

    assert reports == [("42", 0.0)]
