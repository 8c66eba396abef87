"""Which application runs already."""

from tests.unit.actions.deployment_action import run
from worker.actions.serve_submit import DIGEST_VARIABLE, _actor_options, _is_identical


def test_identical_application_is_found_by_its_digest() -> None:
    plan = run("plan") | {
        "ray_actor_options": {"num_cpus": 1, "runtime_env": {"env_vars": {"A": "1"}, "pip": ["x"]}}
    }
    made = _actor_options(plan, {"working_dir": "gcs://p", "env_vars": {"B": "2"}})
    assert made["runtime_env"] == {
        "pip": ["x"],
        "working_dir": "gcs://p",
        "env_vars": {"A": "1", "B": "2", DIGEST_VARIABLE: plan["digest"]},
    }
    running = {"status": "RUNNING", "deployments": {"M": {"deployment_config": {"ray_actor_options": made}}}}
    assert _is_identical(running, plan["digest"])
    assert not _is_identical(running, "other")
    assert not _is_identical(running | {"status": "UNHEALTHY"}, plan["digest"])
