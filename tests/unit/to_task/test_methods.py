"""Annotating by inference: how many at once, what is deferred, what the pre-processor may answer."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from tests.unit.conftest import Clock
from tests.unit.to_task.world import World
from worker.platform import NotFoundError, ServerError
from worker.plugins import PluginHostBusyError
from worker.pre_processor.shared_requests import SharedRequests
from worker.pre_processor.waitlist import WaitlistName
from worker.runs.locks import Locks
from worker.runs.model import Continue, Reschedule, Suspend
from worker.to_task.steps import FINALIZE

Make = Callable[..., World]

PENDING = {"__synapse_deferred__": True, "status": "pending", "ticket": "t-1"}


def deferring(world: World, *polled: Any) -> list[Any]:
    """The pre-processor defers everything; `polled` are its answers to polls, the last again and again."""
    answers = list(polled)
    polls: list[Any] = []

    def answer(params: dict[str, Any]) -> Any:
        if "__synapse_poll__" not in params["json"]:
            return PENDING
        polls.append(params)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    world.backend.inference_answer = answer
    return polls


def failures(world: World) -> dict[int, str]:
    return {failure.task_id: failure.error for failure in world.ledger.failures()}


def test_every_task_gets_what_the_plugin_makes_of_the_answer(by_inference: Make) -> None:
    world = by_inference(25)

    end = world.work()

    assert end.status == "SUCCEEDED"
    assert sorted(world.backend.annotations)[0] == (
        1,
        {"said": {"seen": "http://files/1.png"}},
        "dm_schema_v1",
    )
    assert len(world.backend.annotations) == 25


def test_the_call_names_agent_action_version_and_no_more(by_inference: Make) -> None:
    world = by_inference(1)
    world.work()

    params = {"model": 9, "method": "post", "json": {"image_path": "http://files/1.png"}}
    assert world.backend.inferences == [
        ("pre", {"agent": 3, "action": "inference", "params": params, "version": "2.0.0"})
    ]


def test_the_plugin_prepares_with_all_that_is_known(by_inference: Make) -> None:
    world = by_inference(1, pre_processor_params={"threshold": 0.5})
    world.work()

    item = next(item for item in world.host.items if "model_id" in item)
    assert item["data_files"] == [
        {"url": "http://files/1.json", "file_name": "1.json", "specification_name": "label"}
    ]
    assert (item["model_id"], item["pre_processor_params"]) == (9, {"threshold": 0.5})
    assert item["pre_processor_config"]["code"] == "pre"
    assert item["task_data"]["id"] == 1


@pytest.mark.parametrize(
    ("options", "at_once"),
    [
        ({}, 5),  # Serve's own default of `max_ongoing_requests`
        ({"max_ongoing_requests": 2}, 2),
        ({"batch_size": 1}, 1),
        ({"batch_size": 3, "max_ongoing_requests": 2}, 3),
        ({"batch_size": 3, "batch": 7}, 7),
        ({"batch": 7, "max_ongoing_requests": 2}, 7),
    ],
)
def test_so_many_requests_are_sent_at_once(by_inference: Make, options: dict[str, int], at_once: int) -> None:
    world = by_inference(40, **options)
    world.work()

    assert world.backend.peak_in_flight["run_plugin"] == at_once


def test_runs_share_what_an_application_takes(by_inference: Make) -> None:
    # Given an application that takes five requests at once, and another run that annotates with it
    world = by_inference(40)
    requests = SharedRequests(world.redis, WaitlistName("", 3, "pre", "2.0.0"))
    requests.set(5)

    # When this run annotates, too
    with requests.share("another", 5, Locks(world.redis, 30)):
        world.work()

    # Then it sends half of them
    assert world.backend.peak_in_flight["run_plugin"] == 2


def test_one_chunk_is_open_so_that_no_more_are_sent_at_once(by_inference: Make) -> None:
    world = by_inference(40)
    world.collect()

    assert world.sender.chunks() == [0]


def test_a_deferred_inference_is_polled_with_ticket_and_model(by_inference: Make) -> None:
    world = by_inference(1)
    polls = deferring(world, {"digit": 7})

    world.work()

    assert polls == [{"model": 9, "method": "post", "json": {"__synapse_poll__": "t-1"}}]
    assert world.backend.annotations == [(1, {"said": {"digit": 7}}, "dm_schema_v1")]


def test_a_redelivery_polls_and_does_not_infer_again(by_inference: Make) -> None:
    # Given an inference that outlives the delivery
    world = by_inference(1)
    world.collect()
    deferring(world, PENDING, PENDING, {"digit": 7})
    assert world.annotate(0) == Reschedule(2.0)

    # When the chunk is delivered again
    outcome = world.annotate(0)

    # Then it was polled, and inferred once
    assert outcome == Continue(FINALIZE)
    inferred = [
        params for _, params in world.backend.inferences if "__synapse_poll__" not in params["params"]["json"]
    ]
    assert len(inferred) == 1
    assert world.ledger.counts().success == 1


def test_a_deferred_inference_keeps_its_slot(by_inference: Make) -> None:
    # Given a pre-processor that may be sent two at once, and defers everything
    world = by_inference(10, batch_size=2)
    world.collect()
    deferring(world, PENDING)

    # When the chunk is delivered some times
    outcomes = [world.annotate(0) for _ in range(3)]

    # Then no more than two inferences are open
    assert outcomes == [Reschedule(2.0), Reschedule(3.0), Reschedule(4.5)]
    inferred = [
        data for _, data in world.backend.inferences if "__synapse_poll__" not in data["params"]["json"]
    ]
    assert len(inferred) == 2


NOT_FOUND = {"__synapse_deferred__": True, "status": "not_found", "ticket": "t-1"}


def requests(world: World) -> int:
    """How often inferences were requested, polls left out."""
    calls = [data["params"]["json"] for _, data in world.backend.inferences]
    return len([call for call in calls if "__synapse_poll__" not in call])


def test_a_ticket_that_another_replica_has_is_polled_again(by_inference: Make) -> None:
    world = by_inference(1)
    deferring(world, *[NOT_FOUND] * 19, {"digit": 7})

    end = world.work()

    assert (end.status, requests(world)) == ("SUCCEEDED", 1)


def test_an_answer_between_begins_the_count_anew(by_inference: Make) -> None:
    world = by_inference(1)
    deferring(world, *[NOT_FOUND] * 19, PENDING, *[NOT_FOUND] * 19, {"digit": 7})

    world.work()

    assert requests(world) == 1


def test_an_inference_whose_ticket_is_lost_is_requested_anew(by_inference: Make) -> None:
    world = by_inference(1)
    deferring(world, *[NOT_FOUND] * 20, {"digit": 7})

    end = world.work()

    assert (end.status, requests(world)) == ("SUCCEEDED", 2)


def test_an_inference_is_requested_anew_three_times_at_most(by_inference: Make) -> None:
    world = by_inference(1)
    polls = deferring(world, NOT_FOUND)

    world.work()

    assert (requests(world), len(polls)) == (4, 4 * 20)
    assert "does not know the ticket of this inference any more" in failures(world)[1]


def test_a_task_fails_half_an_hour_after_its_first_request(by_inference: Make, clock: Clock) -> None:
    # Given an inference that never ends
    world = by_inference(1)
    world.collect()
    deferring(world, PENDING)
    assert isinstance(world.annotate(0), Reschedule)
    clock.forward(1_700)
    assert isinstance(world.annotate(0), Reschedule)

    # When half an hour has passed
    clock.forward(200)

    # Then its task fails
    assert world.annotate(0) == Continue(FINALIZE)
    assert failures(world) == {1: "the pre-processor's inference has not ended within 30 minutes"}


def test_polls_come_at_growing_intervals(by_inference: Make) -> None:
    world = by_inference(1)
    world.collect()
    deferring(world, PENDING)

    countdowns = [outcome.countdown for _ in range(8) if isinstance(outcome := world.annotate(0), Reschedule)]

    assert countdowns == sorted(countdowns)
    assert (countdowns[0], countdowns[-1]) == (2.0, 15.0)


@pytest.mark.parametrize("replicas", [2, 4])
def test_tickets_of_several_replicas_fail_no_task(by_inference: Make, replicas: int) -> None:
    """Each request and each poll meets a replica at random, and only one of them knows the ticket."""
    world = by_inference(20, batch_size=4)
    random, owners = Random(3), dict[str, int]()

    def answer(params: dict[str, Any]) -> Any:
        replica, polled = random.randrange(replicas), params["json"].get("__synapse_poll__")
        if polled is None:
            ticket = f"t-{len(owners)}"
            owners[ticket] = replica
            return {**PENDING, "ticket": ticket}
        return {"digit": 7} if owners[polled] == replica else {**NOT_FOUND, "ticket": polled}

    world.backend.inference_answer = answer

    world.work()

    assert (world.record()["success"], world.record()["failed"]) == ("20", "0")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": "failed", "error": "CUDA out of memory"}, "inference failed: CUDA out of memory"),
        ({"status": "failed"}, "inference failed: no reason given"),
        ({"status": "not_found", "ticket": "t-1"}, "does not know the ticket"),
        ({"status": "lost"}, "in a way that is not understood"),
        ({"status": "pending"}, "in a way that is not understood"),
    ],
)
def test_a_deferred_inference_that_fails_is_a_failure_record(
    by_inference: Make, answer: dict[str, Any], error: str
) -> None:
    world = by_inference(2)
    deferring(world, {"__synapse_deferred__": True, **answer})

    end = world.work()

    assert end.status == "FAILED"
    assert all(error in text for text in failures(world).values())
    assert len(failures(world)) == 2


EMPTY = [None, {}, [], ""]


@pytest.mark.parametrize("answer", EMPTY)
@pytest.mark.parametrize("is_deferred", [False, True], ids=["at once", "deferred"])
def test_an_empty_answer_fails_its_task(by_inference: Make, answer: Any, is_deferred: bool) -> None:
    # Given a pre-processor with nothing to say of one of two tasks
    world = by_inference(2, batch_size=1)
    if is_deferred:
        deferring(world, answer, {"digit": 7})
    else:
        answers = iter([answer, {"digit": 7}])
        world.backend.inference_answer = lambda _: next(answers)

    world.work()

    # Then that one fails, after one request, and nothing is written to it
    assert failures(world) == {1: "the pre-processor's inference failed: empty response"}
    assert (requests(world), world.backend.annotated) == (2, [2])


@pytest.mark.parametrize("answer", [0, False, [[]], {"boxes": []}])
def test_an_answer_that_only_says_little_is_converted(by_inference: Make, answer: Any) -> None:
    world = by_inference(1)
    world.backend.inference_answer = lambda _: answer

    world.work()

    assert world.backend.annotations[0][1] == {"said": answer}


def test_an_odd_file_is_not_among_those_of_an_inference(by_inference: Make) -> None:
    world = by_inference(1)
    files = world.backend.files
    world.backend.files = lambda task: {**files(task), "depth": None, "mask": {"url": None}}

    world.work()

    item = next(item for item in world.host.items if "model_id" in item)
    assert [file["specification_name"] for file in item["data_files"]] == ["label"]


def test_a_failed_envelope_keeps_no_secret(by_inference: Make) -> None:
    world = by_inference(1)
    envelope = {"__synapse_deferred__": True, "status": "failed"}
    world.backend.inference_answer = lambda _: {
        **envelope,
        "error": "GET http://files/1.png?token=abc failed",
    }

    world.work()

    assert "abc" not in failures(world)[1]


def test_an_inference_that_fails_for_now_is_asked_again(by_inference: Make) -> None:
    world = by_inference(3)
    world.collect()
    world.backend.faults.fail("run_plugin", ServerError(), times=2)

    countdowns, outcome = world.annotate_fully(0)

    assert (countdowns, outcome) == ([2.0], Continue(FINALIZE))
    assert world.ledger.counts().success == 3


def test_an_inference_is_repeated_after_a_failed_write(by_inference: Make) -> None:
    world = by_inference(1)
    world.collect()
    polls = deferring(world, {"digit": 7})
    world.backend.faults.fail("annotate_task_data", ServerError(), key=1, times=1)

    world.annotate_fully(0)

    # The pre-processor forgets a result that was collected, so a ticket would not help.
    assert len(polls) == 2
    assert len(world.backend.inferences) == 4
    assert world.ledger.counts().success == 1


def test_a_pass_out_of_time_begins_no_more_inferences(by_inference: Make) -> None:
    world = by_inference(5, batch_size=1)
    world.collect()
    world.settings.worker_visibility_timeout_seconds = 0.0

    assert world.annotate(0) == Reschedule(0.0)
    assert len(world.backend.inferences) == 1


def test_a_stop_ends_the_inferences(by_inference: Make) -> None:
    world = by_inference(5)
    world.collect()
    answer = world.backend.inference_answer

    def and_stop(params: dict[str, Any]) -> Any:
        world.end()
        return answer(params)

    world.backend.inference_answer = and_stop

    assert world.annotate(0) == Suspend()
    assert world.backend.annotations == []


def test_answers_are_kept_while_the_plugin_is_busy(by_inference: Make) -> None:
    world = by_inference(3)
    world.collect()
    call_batch, busy = world.host.call_batch, [True, True]

    def sometimes(release: Any, request: Any, operation: str, payload: Any) -> Any:
        if operation == "convert_from_inference" and busy:
            busy.pop()
            raise PluginHostBusyError("digits@1.0.0: its process is busy")
        return call_batch(release, request, operation, payload)

    world.host.call_batch = sometimes  # type: ignore[method-assign]
    world.annotate_fully(0)
    assert len(world.backend.inferences) == 3
    assert sorted(world.backend.annotated) == [1, 2, 3]


@pytest.mark.parametrize("error", [NotFoundError(), ServerError("503 Service Unavailable", 503)])
def test_a_pre_processor_that_is_away_for_a_while_fails_none(by_inference: Make, error: Exception) -> None:
    world = by_inference(3)
    world.collect()
    world.backend.faults.fail("run_plugin", error)
    world.backend.serve_applications[0]["status"] = "DEPLOYING"
    for _ in range(20):
        assert isinstance(world.annotate(0), Reschedule)
    world.backend.serve_applications[0]["status"] = "RUNNING"
    world.backend.faults.recover("run_plugin")
    world.annotate_fully(0)
    assert (world.record()["success"], world.record()["failed"]) == ("3", "0")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            "UNAVAILABLE",
            "Pre-processor deployment failed: serve application reached terminal state (UNAVAILABLE)",
        ),
        ("", "Pre-processor did not become ready within timeout"),
    ],
)
def test_a_pre_processor_that_stays_away_ends_the_run(
    by_inference: Make, clock: Clock, status: str, message: str
) -> None:
    world = by_inference(3)
    world.collect()
    world.backend.faults.fail("run_plugin", NotFoundError())
    world.backend.serve_applications[0]["status"] = status
    assert isinstance(world.annotate(0), Reschedule)
    clock.forward(200)
    with pytest.raises(RuntimeError) as caught:
        world.annotate(0)
    assert str(caught.value) == message
    assert world.record()["failed"] == "0"


def test_each_absence_of_a_pre_processor_is_timed_anew(by_inference: Make, clock: Clock) -> None:
    # Given a pre-processor that was away for a while
    world = by_inference(25, batch_size=1)
    world.collect()
    application = world.backend.serve_applications[0]
    world.backend.faults.fail("run_plugin", NotFoundError(), times=1)
    application["status"] = "DEPLOYING"
    assert isinstance(world.annotate(0), Reschedule)
    application["status"] = "RUNNING"
    world.annotate_fully(0)

    # When it is away again, long after
    clock.forward(1_000)
    world.backend.faults.fail("run_plugin", NotFoundError(), times=1)
    application["status"] = "DEPLOYING"

    # Then the run waits for it, as for the first time
    assert isinstance(world.annotate(1), Reschedule)


def test_a_404_of_a_running_pre_processor_fails_its_task(by_inference: Make) -> None:
    world = by_inference(2)
    world.backend.faults.fail("run_plugin", NotFoundError())
    end = world.work()
    assert end.result["failed_count"] == 2
