"""Releases of a sandbox whose files change are checked, and deployed again where they run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.conftest import Clock
from worker.cli import reload
from worker.cli.reload import ReleaseWatch, Reloader
from worker.sandbox.backend.state import State

CONFIG = "code: cat\nversion: 1.0.0\nactions: {deployment: {entrypoint: plugin.served.Deploy}}\n"
SOUND = """
from worker.actions import BaseDeploymentAction


class Deploy(BaseDeploymentAction):
    entrypoint = print
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reload, "time", SimpleNamespace(monotonic=clock.time))
    return clock


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release in a plugin store."""
    folder = tmp_path / "plugins" / "cat@1.0.0"
    (folder / "plugin").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "plugin" / "__init__.py").touch()
    (folder / "plugin" / "served.py").write_text(SOUND)
    return folder


def changes(watch: ReleaseWatch, clock: Clock, looks: int = 2) -> list[str]:
    found = []
    for _ in range(looks):
        clock.forward(2)
        found += watch.changed()
    return found


def test_nothing_has_changed_at_first(release: Path, clock: Clock) -> None:
    assert changes(ReleaseWatch(release.parent), clock, looks=3) == []


def test_a_changed_file_is_noticed_once(release: Path, clock: Clock) -> None:
    watch = ReleaseWatch(release.parent)
    (release / "plugin" / "served.py").write_text(SOUND + "# more\n")

    assert changes(watch, clock, looks=5) == ["cat@1.0.0"]


def test_a_release_that_is_still_written_is_waited_for(release: Path, clock: Clock) -> None:
    # Given a checkout that goes on between two looks
    watch = ReleaseWatch(release.parent)
    found = []
    for number in range(3):
        (release / f"file{number}").touch()
        found += changes(watch, clock, looks=1)

    # Then it is noticed when it is complete
    assert found == []
    assert changes(watch, clock, looks=1) == ["cat@1.0.0"]


def test_a_new_release_is_noticed(release: Path, clock: Clock) -> None:
    watch = ReleaseWatch(release.parent)
    (release.parent / "dog@1.0.0").mkdir()
    (release.parent / "notes.txt").touch()

    assert changes(watch, clock) == ["dog@1.0.0"]


def test_a_removed_release_is_no_change(release: Path, clock: Clock) -> None:
    watch = ReleaseWatch(release.parent)
    release.rename(release.parent.parent / "gone")

    assert changes(watch, clock, looks=3) == []


def test_a_store_that_is_gone_for_a_moment_is_waited_for(release: Path, clock: Clock) -> None:
    watch = ReleaseWatch(release.parent)
    release.parent.rename(release.parent.parent / "away")
    assert changes(watch, clock) == []

    (release.parent.parent / "away").rename(release.parent)

    assert changes(watch, clock) == ["cat@1.0.0"]


class Sandboxed:
    """A sandbox with its state alone, and what was said and published."""

    def __init__(self, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.published: list[Any] = []
        self.state = State(release.parent.parent / "state.sqlite3")
        sandbox: Any = SimpleNamespace(plugins_dir=release.parent, state=self.state, redis_url="redis://")
        publisher = SimpleNamespace(publish=self.published.append)
        monkeypatch.setattr("shared.Publisher.__enter__", lambda _: publisher)
        self.reloader = Reloader(sandbox, self.said.append)

    def deploy(self, status: str) -> None:
        self.state.insert("serve_applications", {"application": "cat@1.0.0", "status": status})

    def look(self, clock: Clock) -> None:
        for _ in range(2):
            clock.forward(2)
            self.reloader.look()


@pytest.fixture
def sandbox(release: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Sandboxed:
    return Sandboxed(release, monkeypatch)


def test_a_running_release_is_deployed_again(sandbox: Sandboxed, release: Path, clock: Clock) -> None:
    sandbox.deploy("RUNNING")
    (release / "plugin" / "served.py").write_text(SOUND + "# more\n")

    sandbox.look(clock)

    assert sandbox.said == [
        "cat@1.0.0 has changed, and is sound; pre-processor 1",
        "cat@1.0.0 is deployed again, as job 1",
    ]
    [message] = sandbox.published
    assert (message.plugin, message.agent, message.job) == ("cat@1.0.0", 1, "1")


@pytest.mark.parametrize("status", ["", "UNAVAILABLE"])
def test_a_release_that_does_not_run_is_not_deployed(
    sandbox: Sandboxed, release: Path, clock: Clock, status: str
) -> None:
    if status:
        sandbox.deploy(status)
    (release / "plugin" / "served.py").write_text(SOUND + "# more\n")

    sandbox.look(clock)

    assert sandbox.said == ["cat@1.0.0 has changed, and is sound; pre-processor 1"]
    assert sandbox.published == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("config.yaml", "code: [", "not usable: cat@1.0.0: config.yaml is not valid YAML"),
        ("plugin/served.py", "class Other: pass\n", "cat@1.0.0 has changed: "),
        ("plugin/served.py", "class Deploy(:\n", "cat@1.0.0 has changed: "),
    ],
)
def test_a_mistake_is_named_and_nothing_is_deployed(
    sandbox: Sandboxed, release: Path, clock: Clock, file: str, text: str, problem: str
) -> None:
    sandbox.deploy("RUNNING")
    (release / file).write_text(text)

    sandbox.look(clock)

    [said] = sandbox.said
    assert problem in said
    assert sandbox.published == []
