"""A run of exactly the failed tasks of an ended one, of those without data, and a dry run."""

from collections.abc import Callable
from typing import Any

import pytest
from fakeredis import FakeRedis

from shared.channels import job_key, logs_history
from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.to_task.world import JOB, World
from worker.pre_processor.dispatch import detect
from worker.pre_processor.waitlist import DETECT
from worker.runs.keys import failed_tasks_key
from worker.runs.model import Continue, End, Finish, RunFailedError
from worker.runs.runs import Runs, Timing
from worker.settings import MB
from worker.to_task.ledger import MAX_FAILURE_RECORDS, RedisLedger, TaskOutcome
from worker.to_task.prepare import prepare
from worker.to_task.steps import FETCH_TASKS
from worker.workflow.ended_runs import EndedRuns

Make = Callable[..., World]
RETRY = {"only_failed_of": "7"}
WEEK = 7 * 24 * 60 * 60


def accept_earlier(redis: FakeRedis, tasks: int, **fields: Any) -> Runs:
    """A run of job 7 with so many tasks, and a bit for each."""
    runs = Runs(redis, RecordingPublisher(), Timing(60))
    params = {"name": "n", "project": 1, "agent": 3, "target_specification_name": "label"}
    message = {"job": 7, "plugin": "digits@0.9.0", "params": params, **fields}
    runs.store.accept(ToTaskMessage.model_validate(message), "to_task")
    redis.hset(job_key("7"), "total", tasks)
    return runs


def ended_run(redis: FakeRedis, failed: list[int], tasks: int = 0, **fields: Any) -> None:
    """The run of job 7, in which these tasks failed and others did not."""
    runs = accept_earlier(redis, tasks or len(failed), **fields)
    outcomes = [TaskOutcome(index, task, "broken") for index, task in enumerate(failed)]
    RedisLedger(redis, "7").record([*outcomes, TaskOutcome(len(failed), 10**6)])
    runs.finish("7", End(JobStatus.SUCCEEDED, {}))
    runs.store.mark_reported("7")


def annotated(world: World) -> list[int]:
    return sorted(task for task, _, _ in world.backend.annotations)


def rejection(world: World) -> str:
    with pytest.raises(RunFailedError) as caught:
        prepare(world.run, world.services)
    return str(caught.value)


def test_exactly_the_failed_tasks_of_a_run_are_annotated(make_world: Make, redis: FakeRedis) -> None:
    # Given an ended run, two of whose tasks failed, in a project with more tasks
    ended_run(redis, failed=[5, 900], tasks=9)
    world = make_world(10, options=RETRY)

    # When a run retries it
    assert prepare(world.run, world.services) == Continue(FETCH_TASKS)
    end = world.work()

    # Then it annotates these and no others, without asking for a list of tasks
    assert annotated(world) == [5, 900]
    assert (end.status, end.result["total_tasks"]) == (JobStatus.SUCCEEDED, 2)
    assert world.backend.faults.calls["list_tasks"] == 0


def test_failed_tasks_beyond_the_failure_records_are_retried(make_world: Make, redis: FakeRedis) -> None:
    # Given more failed tasks than there are failure records, on several pages
    failed = list(range(1, MAX_FAILURE_RECORDS + 500))
    ended_run(redis, failed=failed)
    world = make_world(0, chunk=100, options=RETRY)

    # When they are collected
    world.collect()

    # Then all of them are there
    assert world.record()["total"] == str(len(failed))


def test_failed_tasks_outlive_the_other_keys_of_the_job(
    make_world: Make, redis: FakeRedis, clock: Clock
) -> None:
    # Given an ended run of which three days later only what is kept is left
    ended_run(redis, failed=[5])
    assert redis.ttl(failed_tasks_key("7")) > WEEK
    clock.forward(WEEK / 2)
    redis.delete(*redis.keys("synapse:jobs:{7}*"))

    # Then it can be retried
    world = make_world(0, options=RETRY)
    world.work()
    assert annotated(world) == [5]


def test_a_run_that_is_no_more_kept_is_an_error(make_world: Make, redis: FakeRedis, clock: Clock) -> None:
    ended_run(redis, failed=[5])
    clock.forward(WEEK + 60)
    EndedRuns(redis).trim(MB, WEEK)

    assert rejection(make_world(1, options=RETRY)) == (
        "only_failed_of: the run of job 7 is not known: an ended run is kept for 7 days at most"
    )
    assert redis.keys("synapse:ended*") == []


def test_a_live_run_is_an_error(make_world: Make, redis: FakeRedis) -> None:
    accept_earlier(redis, 1)

    assert rejection(make_world(1, options=RETRY)) == "only_failed_of: the run of job 7 has not ended"


def test_a_run_that_retries_itself_is_an_error(make_world: Make) -> None:
    assert rejection(make_world(1, options={"only_failed_of": "42"})).endswith("job 42 has not ended")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"tenant": "acme"}, id="tenant"),
        pytest.param(
            {"params": {"name": "n", "project": 2, "agent": 3, "target_specification_name": "label"}},
            id="project",
        ),
    ],
)
def test_a_run_of_another_owner_is_an_error(
    make_world: Make, redis: FakeRedis, other: dict[str, Any]
) -> None:
    ended_run(redis, failed=[5], **other)

    assert rejection(make_world(1, options=RETRY)) == (
        "only_failed_of: the run of job 7 is none of to_task for the same tenant and project"
    )


def test_a_message_without_tenant_is_of_the_workers_own(make_world: Make, redis: FakeRedis) -> None:
    ended_run(redis, failed=[5], tenant="acme")
    world = make_world(1, options=RETRY)
    world.settings.synapse_tenant = "acme"

    assert prepare(world.run, world.services) == Continue(FETCH_TASKS)


def test_a_run_without_failed_tasks_has_nothing_to_retry(make_world: Make, redis: FakeRedis) -> None:
    ended_run(redis, failed=[])
    world = make_world(5, options=RETRY)

    assert world.fetch() == Finish(JobStatus.FAILED, {"error": "No tasks found to annotate"})


def test_failures_that_an_older_release_recorded_are_missed(make_world: Make, redis: FakeRedis) -> None:
    # Given a run one of whose failures a worker recorded that kept no ids
    runs = accept_earlier(redis, 2)
    RedisLedger(redis, "7").record([TaskOutcome(0, 5, "broken")])
    redis.hincrby(job_key("7"), "failed", 1)
    runs.finish("7", End(JobStatus.SUCCEEDED, {}))

    # Then a retry does not pretend to annotate all of them
    assert "has 2 failed tasks, of which 1 are kept" in rejection(make_world(1, options=RETRY))


def test_a_run_that_is_forgotten_between_two_pages_is_an_error(make_world: Make, redis: FakeRedis) -> None:
    # Given a run whose first page is read
    ended_run(redis, failed=[5])
    world = make_world(0, options=RETRY)
    EndedRuns(redis).trim(MB, -60)

    # Then the next one ends it, and does not count as the end of the list
    with pytest.raises(RunFailedError, match="is not known"):
        world.fetch()


def test_failed_tasks_expire_where_an_older_worker_ends(redis: FakeRedis) -> None:
    # Given a failed task of a run whose end an older worker writes, which keeps nothing of it
    runs = accept_earlier(redis, 1)
    RedisLedger(redis, "7").record([TaskOutcome(0, 5, "broken")])

    # When the backend has the end
    runs.store.mark_reported("7")

    # Then the key does not stay for ever
    assert redis.ttl(failed_tasks_key("7")) > 0


def test_a_task_that_has_data_is_left_alone(make_world: Make) -> None:
    # Given tasks with and without data
    world = make_world(4, options={"skip_annotated": True})
    world.backend.files_in_task = False
    world.backend.task_data = {1: {"label": "cat"}, 2: {}, 3: None}

    # When those without are to be annotated
    end = world.work()

    # Then the others are left alone, count as annotated, and the result says how many these were
    assert annotated(world) == [2, 3, 4]
    assert (end.status, end.result["success_count"], end.result["failed_count"]) == ("SUCCEEDED", 4, 0)
    assert end.result["message"] == "Annotated 4 of 4 tasks, 0 failed, 1 were annotated before"
    # No file of theirs was asked for
    assert world.backend.faults.calls["get_data_unit"] == 3


def test_a_task_that_has_data_is_annotated_by_default(make_world: Make) -> None:
    world = make_world(1)
    world.backend.task_data = {1: {"label": "cat"}}

    world.work()

    assert annotated(world) == [1]


def test_a_run_all_of_whose_tasks_have_data_succeeds(make_world: Make) -> None:
    world = make_world(2, options={"skip_annotated": True})
    world.backend.task_data = {1: {"label": "cat"}, 2: {"label": "dog"}}

    assert world.work().status is JobStatus.SUCCEEDED
    assert annotated(world) == []


def test_a_dry_run_says_how_much_there_is_to_do(make_world: Make) -> None:
    # Given 25 tasks in chunks of 10
    world = make_world(25, chunk=10, options={"dry_run": True})

    # When the ids are collected
    end = world.fetch()

    # Then the run ends with that, and nothing is published or written
    assert isinstance(end, Finish)
    assert end.status is JobStatus.SUCCEEDED
    assert end.result["dry_run"] == {"tasks": 25, "chunks": 3, "dispatch": None}
    assert (end.result["total_tasks"], end.result["success_count"]) == (25, 0)

    # And who follows it reads so in its log
    lines = [fields.get("line", "") for _, fields in world.redis.xrange(logs_history(JOB))]
    assert "Dry run: 25 tasks in 3 chunks would be annotated; nothing would be dispatched" in lines
    assert world.sender.published == []
    assert world.backend.annotations == []


@pytest.mark.parametrize("is_running", [True, False])
def test_a_dry_run_says_what_would_be_dispatched(by_inference: Make, is_running: bool) -> None:
    # Given a pre-processor that runs, or does not
    world = by_inference(3, options={"dry_run": True})
    if not is_running:
        world.backend.serve_applications.clear()

    # When its run looks for it and collects the ids
    outcome = world.worker.outcome_of(DETECT, lambda run: detect(run, world.services))
    end = world.fetch()

    # Then it does not wait for it, and says what would be asked for
    assert isinstance(outcome, Continue)
    assert outcome.step.name == FETCH_TASKS.name
    assert isinstance(end, Finish)
    dispatch = end.result["dry_run"]["dispatch"]
    assert (dispatch is None) is is_running
    if dispatch:
        assert dispatch["params"] == {"num_cpus": 1, "num_gpus": 0.1}
        assert "would be deployed first" in end.result["message"]
    assert world.backend.faults.calls["run_plugin"] == 0


@pytest.mark.parametrize("options", [{"skip_annotated": True}, {"dry_run": True}])
def test_an_action_that_runs_whole_has_no_such_options(make_world: Make, options: dict[str, Any]) -> None:
    world = make_world(1, options=options)
    world.host.whole_run = {"methods": ["execute"], "runner": "sdk"}

    assert rejection(world).endswith(f"without {next(iter(options))}")
