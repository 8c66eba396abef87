"""A direct `deploy()` takes what the worker would take from the config.yaml of its folder."""

from pathlib import Path
from typing import Any

import pytest

from worker.actions import BaseDeploymentAction, BaseServeDeployment, RuntimeContext, serve_submit
from worker.plugins import ReleaseInvalidError
from worker.plugins.requests import folder_request
from worker.settings import SettingsError


class Served(BaseServeDeployment):
    async def infer(self, data: Any) -> Any:
        return data


class Deploy(BaseDeploymentAction):
    entrypoint = Served


CONFIG = f"""
code: digits
version: 2.0.0
env: {{MODE: fast, SYNAPSE_HOST: "http://of-the-release"}}
runtime_env: {{env_vars: {{OMP_NUM_THREADS: "1"}}}}
actions:
  deployment:
    entrypoint: plugin.other.Deploy
    serve_options: {{max_ongoing_requests: 2}}
  mine:
    entrypoint: {__name__}.Deploy
    serve_options: {{num_replicas: 3}}
    required_resources: {{num_cpus: 0.5}}
"""


class Submissions:
    """What was submitted, and how long each was waited for."""

    def __init__(self) -> None:
        self.plans: list[Any] = []
        self.runtime_envs: list[Any] = []
        self.seconds: list[float] = []

    def submit(self, _target: Any, plan: Any, runtime_env: Any, *_: Any) -> Any:
        self.plans.append(plan)
        self.runtime_envs.append(runtime_env)
        return {"submitted": True, "reason": None, "replaced": False, "messages": []}

    def wait(self, _name: str, seconds: float, *_: Any) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def submissions(monkeypatch: pytest.MonkeyPatch) -> Submissions:
    """Serve is not there; everything before it is."""
    made = Submissions()
    monkeypatch.setattr(serve_submit, "connect", lambda *_: None)
    monkeypatch.setattr(serve_submit, "submit", made.submit)
    monkeypatch.setattr(serve_submit, "wait_until_running", made.wait)
    monkeypatch.delenv("WORKER_DEPLOY_TIMEOUT_SECONDS", raising=False)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is that of a release."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Agent:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    def check_feasibility(self, **asked: Any) -> Any:
        self.asked.append(asked)
        return {"allowed": True, "reasons": []}


def test_options_of_the_class_s_own_action_are_deployed(folder: Path, submissions: Submissions) -> None:
    Deploy({}, RuntimeContext()).deploy()

    [plan] = submissions.plans
    assert plan["app_name"] == "digits@2.0.0"
    assert plan["serve_options"] == {"num_replicas": 3}
    assert plan["ray_actor_options"] == {"num_cpus": 0.5}
    assert submissions.runtime_envs == [
        {"env_vars": {"OMP_NUM_THREADS": "1", "MODE": "fast", "SYNAPSE_HOST": "http://of-the-release"}}
    ]


def test_an_action_that_no_entry_names_is_the_deployment(folder: Path, submissions: Submissions) -> None:
    class Other(Deploy):
        pass

    Other({}, RuntimeContext()).deploy()

    assert submissions.plans[0]["serve_options"] == {"max_ongoing_requests": 2}


def test_requirements_of_the_folder_are_installed(folder: Path, submissions: Submissions) -> None:
    (folder / "requirements.txt").write_text("numpy==2.0.0\n")

    Deploy({}, RuntimeContext()).deploy()

    assert "numpy==2.0.0" in str(submissions.runtime_envs[0]["pip"])


def test_settings_of_the_context_win_over_config_yaml(folder: Path, submissions: Submissions) -> None:
    action = Deploy(
        {}, RuntimeContext({"SYNAPSE_PLUGIN_RELEASE_CODE": "tried@0", "SYNAPSE_HOST": "http://h"})
    )

    action.deploy()

    assert submissions.plans[0]["app_name"] == "tried@0"
    assert (action.ctx.env["SYNAPSE_HOST"], action.ctx.env["MODE"]) == ("http://h", "fast")


def test_the_gate_is_asked_for_what_config_yaml_declares(folder: Path, submissions: Submissions) -> None:
    agent = Agent()

    Deploy({}, RuntimeContext(agent_client=agent)).deploy()

    [asked] = agent.asked
    assert (asked["num_cpus"], asked["replicas"]) == (0.5, 3)


def test_a_folder_without_config_yaml_deploys_as_the_class_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, submissions: Submissions
) -> None:
    monkeypatch.chdir(tmp_path)
    action = Deploy({}, RuntimeContext({"SYNAPSE_PLUGIN_RELEASE_CODE": "digits@1.0.0"}))

    action.deploy()

    assert folder_request("plugin.actions.Deploy", {}, tmp_path) is None
    assert submissions.plans[0]["serve_options"] == {}


def test_mistakes_of_config_yaml_are_named(folder: Path, submissions: Submissions) -> None:
    (folder / "config.yaml").write_text("code: digits\nactions: {}\n")

    with pytest.raises(ReleaseInvalidError, match="version"):
        Deploy({}, RuntimeContext()).deploy()
    assert submissions.plans == []


@pytest.mark.parametrize(("text", "seconds"), [("", 600.0), (" 42.5 ", 42.5)])
def test_it_waits_as_long_as_the_setting_says(
    folder: Path, submissions: Submissions, monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("WORKER_DEPLOY_TIMEOUT_SECONDS", text)

    Deploy({}, RuntimeContext()).deploy()

    assert submissions.seconds == [seconds]


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf"])
def test_a_wrong_setting_is_named(
    folder: Path, submissions: Submissions, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("WORKER_DEPLOY_TIMEOUT_SECONDS", text)

    with pytest.raises(SettingsError, match="WORKER_DEPLOY_TIMEOUT_SECONDS"):
        Deploy({}, RuntimeContext()).deploy()
    assert submissions.plans == []
