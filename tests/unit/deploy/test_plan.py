"""What the steps of a deployment store for each other."""

import json
from typing import Any

import pytest

from tests.unit.deploy.deploy_harness import PLAN, DeployHarness
from worker.deploy.plan import DeployPlan, DeployState, Submission, plan_of
from worker.runs.model import RunFailedError

JSON: dict[str, Any] = {
    "app_name": "digits@1.0.0",
    "route_prefix": "/abc",
    "ray_actor_options": {"num_cpus": 2},
    "serve_options": {"num_replicas": 3},
    "digest": "d1",
}


def test_a_plan_has_the_json_that_it_was_read_from() -> None:
    plan = DeployPlan.from_json(JSON)
    assert (plan.app_name, plan.route_prefix, plan.digest) == ("digits@1.0.0", "/abc", "d1")
    assert plan.ray_actor_options == {"num_cpus": 2}
    assert plan.serve_options == {"num_replicas": 3}
    assert plan.to_json() == JSON


def test_an_authors_own_keys_of_a_plan_are_kept() -> None:
    given = {**JSON, "region": {"name": "north"}}
    plan = DeployPlan.from_json(given)
    assert plan.other == {"region": {"name": "north"}}
    assert plan.to_json() == given


@pytest.mark.parametrize("key", sorted(JSON))
def test_a_plan_that_lacks_a_key_is_an_error(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        DeployPlan.from_json({name: value for name, value in JSON.items() if name != key})


def test_a_run_without_a_plan_fails_with_its_job(harness: DeployHarness) -> None:
    with pytest.raises(RunFailedError, match="job 42 has no plan"):
        plan_of(harness.run())
    harness.update_state(plan=PLAN)
    assert plan_of(harness.run()) == PLAN


def test_the_state_is_read_and_written_as_older_workers_do() -> None:
    # Given what an older worker has stored
    stored = {
        "plan": '{"app_name": "digits@1.0.0", "route_prefix": "/abc", "ray_actor_options": {"num_cpus": 2},'
        ' "serve_options": {"num_replicas": 3}, "digest": "d1"}',
        "capacity": '"skipped"',
        "submission": '{"existed": true, "at": 12.5}',
        "submitted": "true",
        "failure": '"no"',
        "astray": "13.5",
        "told": '["a", "b"]',
        "registered": "900",
        "register_attempts": "2",
    }

    # When it is read, then it is this state, and is written alike
    state = DeployState(
        plan=PLAN,
        capacity="skipped",
        submission=Submission(existed=True, at=12.5),
        submitted=True,
        failure="no",
        superseded_since=13.5,
        reported_reasons=("a", "b"),
        registered=900,
        post_attempts=2,
    )
    assert DeployState.from_stored(stored) == state
    written = DeployState().changes(state)
    assert {name: json.loads(text) for name, text in written.items()} == {
        name: json.loads(text) for name, text in stored.items()
    }
