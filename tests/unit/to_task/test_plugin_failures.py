"""A plugin that hangs, dies or answers too much: only the task of such a call fails, the run ends in time."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.to_task.world import JOB, KilledError, World
from worker.plugins import (
    PluginCallError,
    PluginHostUnavailableError,
    PluginProcessDiedError,
    PluginTimeoutError,
)
from worker.runs.keys import workflow_keys_key
from worker.runs.model import Continue, Reschedule, RunFailedError, Suspend
from worker.to_task import hooks
from worker.to_task.ledger import plugin_calls_key
from worker.to_task.pipeline import SINGLE_CALLS
from worker.to_task.steps import FINALIZE

Make = Callable[..., World]

HUNG = PluginTimeoutError("digits@1.0.0: convert_from_files took longer than 300 s and was stopped")
DIED = PluginProcessDiedError("ActorDiedError", "the process of digits@1.0.0 died")
TOO_LARGE = PluginCallError("AnswerTooLargeError", "the plugin's answer has at least 65.0 MB as JSON")


def failures(world: World) -> dict[int, str]:
    return {failure.task_id: failure.error for failure in world.ledger.failures()}


def calls(world: World, operation: str = "convert_from_files") -> list[int]:
    """Lengths of the plugin's calls, in their order."""
    return [length for name, length in world.host.batches if name == operation]


def calls_with(world: World, task: int) -> int:
    return len([item for item in world.host.items if item["task_data"]["id"] == task])


def before_call(world: World, number: int, then: Callable[[], None]) -> None:
    """Let `then` happen at the plugin's call of that number, from 1."""
    call_batch, count = world.host.call_batch, iter(range(1, 10_000))

    def counting(*given: Any) -> Any:
        if next(count) == number:
            then()
        return call_batch(*given)

    world.host.call_batch = counting  # type: ignore[method-assign]


def raise_(error: BaseException) -> Callable[[], None]:
    def then() -> None:
        raise error

    return then


@pytest.mark.parametrize("error", [HUNG, DIED, TOO_LARGE])
def test_only_the_task_of_a_failed_call_fails(make_world: Make, error: Exception) -> None:
    # Given a batch with one bad task
    world = make_world(40, chunk=100)
    world.host.crashing, world.host.crash = {17}, error

    # When the run is worked
    end = world.work()

    # Then that task has failed and no other, after a call with it alone
    assert failures(world) == {17: str(error)}
    assert (end.status, end.result["success_count"]) == ("SUCCEEDED", 39)
    assert (calls(world), calls_with(world, 17)) == ([32, *[1] * 40], 2)


def test_other_chunks_go_in_batches(make_world: Make) -> None:
    world = make_world(40, chunk=20)
    world.host.crashing, world.host.crash = {3}, HUNG

    world.work()

    assert calls(world) == [20, *[1] * 20, 20]


def test_a_chunk_goes_back_after_two_tasks_that_hang(make_world: Make) -> None:
    # Given a chunk with three such tasks
    world = make_world(20, chunk=20)
    world.host.crashing, world.host.crash = {2, 4, 9}, HUNG
    world.collect()

    # When it is delivered
    outcome = world.annotate(0)

    # Then it goes back at once after the second, what was answered is written, and no later task was tried
    assert outcome == Reschedule(0.0)
    assert (sorted(failures(world)), sorted(world.backend.annotated)) == ([2, 4], [1, 3])
    assert calls(world) == [20, 1, 1, 1, 1]
    # And the next pass goes on with the rest, one a call
    assert world.annotate(0) == Continue(FINALIZE)
    assert calls(world)[5:] == [1] * 16
    assert sorted(failures(world)) == [2, 4, 9]


def test_a_pass_with_single_calls_fetches_few_tasks_ahead(make_world: Make) -> None:
    world = make_world(100, chunk=100)
    world.host.crashing, world.host.crash = set(range(1, 101)), HUNG
    world.collect()
    world.annotate(0)
    fetched = world.backend.faults.calls["get_task"]

    world.annotate(0)

    assert world.backend.faults.calls["get_task"] == fetched + SINGLE_CALLS


@pytest.mark.parametrize("error", [HUNG, DIED])
def test_a_plugin_that_only_fails_ends_the_run(make_world: Make, error: Exception) -> None:
    # Given a plugin that hangs or dies on every task
    world = make_world(100, chunk=100)
    world.host.crashing, world.host.crash = set(range(1, 101)), error
    world.collect()

    # When the chunk is delivered until the run ends
    with pytest.raises(RunFailedError) as caught:
        world.annotate_fully(0)

    # Then that was after ten tasks in a row, with the reason and what to do
    assert str(caught.value) == (
        f"The plugin hung or died on 10 tasks in a row, the last of them task 10 ({error}). No other task is"
        " tried: run a release that is mended, or, if its calls only need longer, raise"
        " WORKER_PLUGIN_TIMEOUT_SECONDS"
    )
    assert calls(world) == [32, *[1] * 10]
    assert sorted(failures(world)) == list(range(1, 11))


def test_failures_in_a_row_are_counted_over_all_chunks(make_world: Make) -> None:
    world = make_world(30, chunk=10)
    world.settings.worker_plugin_max_failures_in_row = 5
    world.host.crashing, world.host.crash = set(range(1, 31)), HUNG
    world.collect()
    assert [world.annotate(chunk) for chunk in (0, 1)] == [Reschedule(0.0)] * 2

    with pytest.raises(RunFailedError, match="on 5 tasks in a row, the last of them task 21 "):
        world.annotate(2)


@pytest.mark.parametrize("failing", [set(), {5}], ids=["an answer", "an error of the author"])
def test_a_task_that_is_answered_begins_the_count_anew(make_world: Make, failing: set[int]) -> None:
    # Given two tasks that hang before one that is answered, and two after it
    world = make_world(9, chunk=10)
    world.settings.worker_plugin_max_failures_in_row = 3
    world.host.crashing, world.host.crash = {3, 4, 6, 7}, HUNG
    world.host.failing = failing

    end = world.work()

    assert (end.status, end.result["failed_count"]) == ("SUCCEEDED", 4 + len(failing))


def test_a_batch_that_is_answered_begins_the_count_anew(make_world: Make) -> None:
    world = make_world(30, chunk=10)
    world.settings.worker_plugin_max_failures_in_row = 3
    world.host.crashing, world.host.crash = {1, 2, 21, 22}, HUNG
    world.collect()
    world.annotate(0)
    world.annotate(1)

    assert world.annotate(2) == Reschedule(0.0)


def test_a_host_that_is_away_counts_for_no_task(make_world: Make) -> None:
    # Given a limit of one failure, a bad task, and a host that is away amid the single calls
    world = make_world(10, chunk=10)
    world.settings.worker_plugin_max_failures_in_row = 1
    world.host.crashing, world.host.crash = {9}, TOO_LARGE
    world.collect()
    before_call(world, 5, raise_(PluginHostUnavailableError("the Ray cluster was lost during the call")))

    # When the chunk is delivered
    outcome = world.annotate(0)

    # Then what was answered before is written, and the rest is left for another pass
    assert outcome == Reschedule(0.0)
    assert (sorted(world.backend.annotated), failures(world)) == ([1, 2, 3], {})
    assert world.annotate(0) == Continue(FINALIZE)
    assert calls_with(world, 1) == 2


def test_a_stop_is_heard_between_two_calls(make_world: Make) -> None:
    world = make_world(20, chunk=20)
    world.host.crashing, world.host.crash = {20}, HUNG
    world.collect()
    before_call(world, 4, world.end)

    assert world.annotate(0) == Suspend()
    assert calls(world) == [20, 1, 1, 1]
    assert world.backend.annotated == []


def test_single_calls_obey_the_time_of_a_pass(make_world: Make) -> None:
    # Given no time at all, and a batch that hangs while the next one is fetched
    world = make_world(34, chunk=100)
    world.host.crashing, world.host.crash = {4}, HUNG
    world.settings.worker_visibility_timeout_seconds = 0.0
    world.collect()

    # When the chunk is delivered until it is done
    countdowns, _ = world.annotate_fully(0)

    # Then the batch took a pass, and each task one
    assert (countdowns, calls(world)) == ([0.0] * 34, [32, *[1] * 34])
    assert sorted(failures(world)) == [4]


def test_a_kill_does_not_repeat_a_task_that_hung(make_world: Make) -> None:
    # Given a worker that is killed at the call after that of a task that hung
    world = make_world(10, chunk=10)
    world.host.crashing, world.host.crash = {1}, HUNG
    world.collect()
    before_call(world, 3, raise_(KilledError()))
    with pytest.raises(KilledError):
        world.annotate(0)

    # When another worker goes on
    assert world.annotate(0) == Continue(FINALIZE)

    # Then it goes on one a call, without that task
    assert calls(world) == [10, 1, *[1] * 9]
    assert (failures(world), calls_with(world, 1)) == ({1: str(HUNG)}, 2)


def test_a_task_that_hangs_in_its_preparation_fails_alone(by_inference: Make) -> None:
    world = by_inference(5)
    world.host.faults.fail("prepare_inference", HUNG, times=2)

    end = world.work()

    assert (failures(world), end.result["success_count"]) == ({1: str(HUNG)}, 4)
    assert calls(world, "prepare_inference") == [5, *[1] * 5]
    assert len(world.backend.inferences) == 4


def test_answers_of_inferences_are_kept_when_a_conversion_hangs(
    by_inference: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given no time for more than a call, and a batch of answers of which one cannot be converted
    world = by_inference(6, batch_size=6)
    world.collect()
    convert, bad = world.host.call_batch, []

    def hang(release: Any, request: Any, operation: str, payload: list[Any]) -> Any:
        answer = convert(release, request, operation, payload)
        if operation == "convert_from_inference" and any(item["task_data"]["id"] == 3 for item in payload):
            bad.append(len(payload))
            raise HUNG
        return answer

    world.host.call_batch = hang  # type: ignore[method-assign]

    # When the chunk is delivered until it is done
    world.annotate_fully(0)

    # Then each inference was requested once
    assert (bad, failures(world)) == ([6, 1], {3: str(HUNG)})
    assert len(world.backend.inferences) == 6


def test_few_inferences_are_repeated_when_all_conversions_hang(by_inference: Make) -> None:
    world = by_inference(100, batch_size=1)
    world.collect()
    world.host.faults.fail("convert_from_inference", HUNG)

    with pytest.raises(RunFailedError):
        world.annotate_fully(0)

    assert calls(world, "convert_from_inference")[1:] == [1] * 10
    # At most one batch of answers is lost, and then, in each of four passes, a group of single calls.
    assert len(world.backend.inferences) <= hooks.MAX_FAILURES_IN_PASS + 30 + 4 * SINGLE_CALLS


def test_what_is_remembered_of_the_calls_expires_with_the_run(make_world: Make) -> None:
    # Given a run that a worker began which did not know the key
    world = make_world(10, chunk=10)
    world.host.crashing, world.host.crash = {1}, HUNG
    world.collect()
    world.redis.srem(workflow_keys_key(JOB), plugin_calls_key(JOB))

    world.annotate(0)

    assert world.redis.sismember(workflow_keys_key(JOB), plugin_calls_key(JOB))
