"""Which application runs already."""

from tests.unit.actions.deployment_action import run
from worker.actions.serve_state import forced_digest
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


def test_an_application_that_was_forced_is_identical() -> None:
    # Given an application that a forced run has submitted
    forced = forced_digest("d1", "42")
    made = {"runtime_env": {"env_vars": {DIGEST_VARIABLE: forced}}}
    running = {"status": "RUNNING", "deployments": {"M": {"deployment_config": {"ray_actor_options": made}}}}

    # Then it is that of its plan and of its run, and of no other forced one
    assert _is_identical(running, "d1")
    assert _is_identical(running, forced)
    assert not _is_identical(running, forced_digest("d1", "43"))
    assert not _is_identical(running, "d")


def test_the_authors_environment_wins_with_its_own_installer() -> None:
    # Given a release with requirements, whose author's code asks for another package and a variable
    plan = run("plan") | {
        "ray_actor_options": {
            "runtime_env": {"uv": ["mine"], "env_vars": {"A": "mine"}, "working_dir": "elsewhere"}
        }
    }
    release = {"pip": ["theirs"], "working_dir": "gcs://p", "env_vars": {"A": "theirs", "B": "2"}}

    # When it is deployed, then Ray gets one installer, the author's, and the code is the release's
    made = _actor_options(plan, release)["runtime_env"]
    variables = {"A": "mine", "B": "2", DIGEST_VARIABLE: plan["digest"]}
    assert made == {"uv": ["mine"], "working_dir": "gcs://p", "env_vars": variables}
