"""Progress to the letter of the platform's API."""

import json

import pytest
from fakeredis import FakeRedis

from shared.channels import events_channel, job_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from worker.plugins.output import PluginOutput
from worker.runs.keys import progress_key
from worker.runs.model import End, Run
from worker.runs.progress import DEPLOY, TO_TASK_FILE, TO_TASK_INFERENCE, Proportions, proportions_of
from worker.runs.runs import Runs


@pytest.mark.parametrize("proportions", [DEPLOY, TO_TASK_FILE, TO_TASK_INFERENCE])
def test_proportions_add_up(proportions: Proportions) -> None:
    assert sum(proportions.values()) == 100


def test_proportions_of_to_task_are_the_platforms() -> None:
    assert list(TO_TASK_FILE.items()) == [
        ("initialize", 10), ("prepare", 5), ("fetch_tasks", 10), ("annotate_task_data", 70), ("finalize", 5),
    ]  # fmt: skip
    assert list(TO_TASK_INFERENCE.items()) == [
        ("initialize", 10), ("prepare", 20), ("fetch_tasks", 10), ("annotate_task_data", 55), ("finalize", 5),
    ]  # fmt: skip


def test_steps_of_deploy_are_the_platforms() -> None:
    assert list(DEPLOY) == ["initialize", "deploy", "register"]


def test_proportions_follow_the_method(deploy: DeployMessage, to_task: ToTaskMessage) -> None:
    params = {"name": "n", "project": 1, "agent": 1, "method": "inference", "pre_processor": 1, "model": 2}
    inference = ToTaskMessage.model_validate({"job": 1, "plugin": "a@1", "params": params})

    assert [proportions_of(each) for each in (deploy, to_task, inference)] == [
        DEPLOY,
        TO_TASK_FILE,
        TO_TASK_INFERENCE,
    ]


def test_record_has_the_platforms_shape(runs: Runs, run: Run) -> None:
    runs.set_progress(run, "initialize", 100)
    runs.set_progress(run, "deploy", 50)

    snapshot = runs.progress.snapshot("42", DEPLOY)

    assert snapshot.progress == {
        "record": {
            "steps": {
                "initialize": {"proportion": 10, "order": 1, "percent": 100.0, "time_remaining": None},
                "deploy": {"proportion": 75, "order": 2, "percent": 50.0, "time_remaining": None},
                "register": {"proportion": 15, "order": 3, "percent": 0.0, "time_remaining": None},
            }
        },
        "current_progress": {
            "overall": 47.5,
            "step": "deploy",
            "percent": 50.0,
            "time_remaining": None,
            "order": 2,
        },
    }


def test_time_remaining_follows_the_pace(runs: Runs, run: Run, clock: Clock) -> None:
    runs.set_progress(run, "deploy", 0)
    clock.forward(10)
    runs.set_progress(run, "deploy", 25)

    current = runs.progress.snapshot("42", DEPLOY).progress["current_progress"]

    assert current["time_remaining"] == pytest.approx(30, abs=4)


def test_record_before_any_progress_stands_at_the_first_step(runs: Runs, run: Run) -> None:
    current = runs.progress.snapshot("42", DEPLOY).progress["current_progress"]

    assert current == {
        "overall": 0.0,
        "step": "initialize",
        "percent": 0.0,
        "time_remaining": None,
        "order": 1,
    }


def test_steps_before_the_current_one_are_done(runs: Runs, run: Run) -> None:
    runs.set_progress(run, "register", 1)

    steps = runs.progress.snapshot("42", DEPLOY).progress["record"]["steps"]

    assert [steps[name]["percent"] for name in DEPLOY] == [100, 100, 1]


def test_complete_record_is_full(runs: Runs, run: Run) -> None:
    runs.set_progress(run, "deploy", 3)

    progress = runs.progress.snapshot("42", DEPLOY, is_complete=True).progress

    assert {step["percent"] for step in progress["record"]["steps"].values()} == {100}
    assert progress["current_progress"]["overall"] == 100


def test_percent_of_a_step_never_falls(runs: Runs, run: Run) -> None:
    runs.set_progress(run, "deploy", 50)
    runs.set_progress(run, "deploy", 20)

    assert runs.progress.snapshot("42", DEPLOY).progress["current_progress"]["percent"] == 50


def test_percent_stays_within_a_hundred(runs: Runs, run: Run) -> None:
    runs.set_progress(run, "deploy", 180)

    assert runs.progress.snapshot("42", DEPLOY).progress["current_progress"]["percent"] == 100


def test_metrics_have_the_platforms_shape(runs: Runs, run: Run) -> None:
    runs.set_metrics(run, "annotate_task_data", success=3, failed=1, stand_by=6)

    assert runs.progress.snapshot("42", DEPLOY).metrics == {
        "record": {"steps": {"annotate_task_data": {"success": 3, "failed": 1, "stand_by": 6}}}
    }


def test_no_metrics_are_an_empty_record(runs: Runs, run: Run) -> None:
    assert runs.progress.snapshot("42", DEPLOY).metrics == {"record": {"steps": {}}}


def test_public_record_shows_overall(runs: Runs, run: Run, redis: FakeRedis) -> None:
    runs.set_progress(run, "deploy", 50)

    assert float(redis.hget(job_key("42"), "overall") or 0) == 47.5


def test_public_record_shows_overall_as_it_was_reported(runs: Runs, run: Run, redis: FakeRedis) -> None:
    runs.set_progress(run, "deploy", 88.613333)  # 10 + 75 * 88.61 / 100 has no short binary form
    shown = redis.hget(job_key("42"), "overall")
    assert shown == f"{runs.progress.snapshot('42', DEPLOY).progress['current_progress']['overall']:g}"
    assert len(shown) <= 5


def test_of_earlier_steps_nothing_is_kept(runs: Runs, run: Run, redis: FakeRedis) -> None:
    runs.set_progress(run, "initialize", 100)
    runs.set_progress(run, "deploy", 50)

    assert set(redis.hgetall(progress_key("42"))) == {"deploy", "since:deploy"}


def test_a_late_report_of_an_earlier_step_changes_no_record(runs: Runs, run: Run) -> None:
    runs.set_progress(run, "deploy", 50)
    before = runs.progress.snapshot("42", DEPLOY)

    runs.set_progress(run, "initialize", 10)

    assert runs.progress.snapshot("42", DEPLOY) == before


def test_plugin_values_stand_beside_those_of_the_run(runs: Runs, run: Run, redis: FakeRedis) -> None:
    # Given a run with progress and metrics of its own
    runs.set_progress(run, "deploy", 50)
    runs.set_metrics(run, "deploy", replicas=2)

    # When its plugin reports some, also under names of the run
    output = PluginOutput(
        progress={"read": 25.0, "deploy": 99.0},
        metrics={"deploy": {"replicas": 9, "b": 1}, "read": {"a": 1.5}},
    )
    runs.add_plugin_output("42", output)
    runs.add_plugin_output("42", PluginOutput(metrics={"read": {"c": 3}}))

    # Then the run's stay, and the plugin's are added
    snapshot = runs.progress.snapshot("42", DEPLOY)
    steps = snapshot.progress["record"]["steps"]
    assert steps["deploy"]["percent"] == 50
    assert steps["read"] == {"proportion": 0, "order": 4, "percent": 25.0, "time_remaining": None}
    assert snapshot.progress["current_progress"]["overall"] == 47.5
    assert snapshot.metrics == {
        "record": {"steps": {"deploy": {"replicas": 2, "b": 1}, "read": {"a": 1.5, "c": 3}}}
    }


def test_plugin_values_are_published(runs: Runs, run: Run, redis: FakeRedis) -> None:
    runs.set_progress(run, "deploy", 50)
    listener = redis.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(events_channel("42"))
    listener.get_message()

    runs.add_plugin_output("42", PluginOutput(progress={"read": 25.0}, metrics={"read": {"a": 1, "b": 2}}))

    heard = [json.loads(message["data"]) for message in iter(listener.get_message, None)]
    assert heard == [
        {"type": "progress", "step": "read", "percent": 25.0, "overall": 47.5},
        {"type": "metrics", "step": "read", "metrics": {"a": 1.0, "b": 2.0}},
    ]


def test_plugin_names_are_limited(runs: Runs, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.runs.progress.MAX_FIELDS", 10)

    for number in range(20):
        runs.add_plugin_output("42", PluginOutput(metrics={"tasks": {str(number): 1}}))
    runs.add_plugin_output("42", PluginOutput(metrics={"tasks": {"0": 5}}))

    metrics = runs.progress.snapshot("42", DEPLOY).metrics["record"]["steps"]["tasks"]
    assert len(metrics) <= 10
    assert metrics["0"] == 5


def test_plugin_output_after_the_end_changes_nothing(runs: Runs, run: Run, redis: FakeRedis) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    before = redis.hgetall(progress_key("42"))

    runs.add_plugin_output("42", PluginOutput(progress={"read": 25.0}, metrics={"read": {"a": 1}}))

    assert redis.hgetall(progress_key("42")) == before
