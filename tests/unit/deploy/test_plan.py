"""What the steps of a deployment store for each other."""

import pytest

from tests.unit.deploy.deploy_harness import PLAN, DeployHarness
from worker.deploy.plan import DeployPlan, Submission, plan_of, submission_of


def test_a_plan_has_the_json_that_it_was_read_from() -> None:
    plan = DeployPlan.from_json(PLAN)
    assert (plan.app_name, plan.route_prefix, plan.digest) == ("digits@1.0.0", "/abc", "d1")
    assert plan.ray_actor_options == {"num_cpus": 2}
    assert plan.serve_options == {"num_replicas": 3}
    assert plan.to_json() == PLAN


def test_an_authors_own_keys_of_a_plan_are_kept() -> None:
    given = {**PLAN, "region": {"name": "north"}}
    plan = DeployPlan.from_json(given)
    assert plan.other == {"region": {"name": "north"}}
    assert plan.to_json() == given


@pytest.mark.parametrize("key", sorted(PLAN))
def test_a_plan_that_lacks_a_key_is_an_error(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        DeployPlan.from_json({name: value for name, value in PLAN.items() if name != key})


def test_a_stored_plan_and_submission_are_read_back(harness: DeployHarness) -> None:
    assert submission_of(harness.run()) is None
    submission = Submission(existed=True, at=12.5)
    harness.runs.store.note("42", "plan", PLAN)
    submission.note(harness.run(), harness.runs)
    assert plan_of(harness.run()) == DeployPlan.from_json(PLAN)
    assert submission_of(harness.run()) == submission
