"""`synapse-worker rollback` and `undeploy` on a Serve in memory."""

from dataclasses import dataclass, field

import pytest

from tests.unit.cli.command_line import CommandLine, run_failing
from worker.actions.serve_contents import RollBack
from worker.deploy.cluster import ServeState
from worker.deploy.deployments import application_key

APP = "digits@1.0.0"
FAILED = ServeState(True, "failed", "DEPLOY_FAILED", "ValueError: no weights")


@dataclass
class Cluster:
    """A cluster with one application."""

    found: RollBack = RollBack.SUBMITTED
    shown: ServeState = field(default_factory=lambda: ServeState(True, "running", "RUNNING"))
    calls: list[tuple[str, ...]] = field(default_factory=list)

    def roll_back(self, app_name: str) -> RollBack:
        return self.found

    def state(self, app_name: str) -> ServeState:
        return self.shown

    def live_applications(self) -> dict[str, object]:
        return {"other@1.0.0": {}}

    def put_back(self, *arguments: str) -> bool:
        self.calls.append(("put_back", *arguments))
        return True

    def undeploy(self, app_name: str) -> None:
        self.calls.append(("undeploy", app_name))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.delenv("WORKER_AGENT", raising=False)
    monkeypatch.setattr("worker.cli.cluster.RayCluster", lambda _: cluster)
    return cluster


def test_a_rollback_waits_until_the_application_runs(cli: CommandLine, cluster: Cluster) -> None:
    assert cli.run("rollback", APP) == f"{APP} runs what it ran before its last update"
    assert cluster.calls == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (RollBack.NO_APPLICATION, f"there is no application {APP} on Ray Serve There are: other@1.0.0."),
        (RollBack.NOTHING_KEPT, f"of {APP} nothing is kept that ran before"),
    ],
)
def test_what_cannot_be_rolled_back_is_an_error(
    cli: CommandLine, cluster: Cluster, found: RollBack, said: str
) -> None:
    cluster.found = found
    answer = cli.run("rollback", APP, code=1)
    assert said in answer
    assert "Deploy the release that" in answer


def test_a_rollback_that_fails_keeps_what_runs(cli: CommandLine, cluster: Cluster) -> None:
    cluster.shown = FAILED
    said = cli.run("rollback", APP, code=1)
    assert "cannot run what it ran before, and keeps what it has: ValueError: no weights" in said
    assert cluster.calls == [("put_back", APP, "roll back")]


def test_removing_twice_is_no_error(cli: CommandLine, cluster: Cluster) -> None:
    assert cli.run("undeploy", APP) == f"{APP} was removed"
    cluster.shown = ServeState()
    assert cli.run("undeploy", APP) == f"{APP} is not on Ray Serve: nothing to remove"


def test_a_run_that_deploys_the_same_has_it_first(cli: CommandLine, cluster: Cluster) -> None:
    cli.redis.set(f"{application_key(None, APP)}:lock", "a run")
    for name in ("rollback", "undeploy"):
        assert f"a run deploys or removes {APP} at this moment" in cli.run(name, APP, code=1)
    assert cluster.calls == []


def test_without_an_address_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "RAY_ADDRESS is not set" in run_failing("undeploy", APP)
