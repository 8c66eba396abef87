"""`sandbox --reload`: releases whose files change are checked, and deployed again where they run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from worker.actions.action_check import check_action
from worker.plugins import PluginError, PluginStore, Release
from worker.plugins.store import release_stamp
from worker.settings import MB

if TYPE_CHECKING:
    from worker.sandbox import Sandbox

SECONDS_BETWEEN_LOOKS: Final = 1.0
MAX_RELEASE_BYTES: Final = 512 * MB


class ReleaseWatch:
    """Finds the releases in a plugin store whose files have changed since the look before."""

    def __init__(self, plugins_dir: Path) -> None:
        self._plugins_dir = plugins_dir
        self._stamps = self._look()
        self._changing: set[str] = set()
        self._looked_at = time.monotonic()

    def changed(self) -> list[str]:
        """Names of releases that are new or changed, once they have stayed the same for a look.

        A checkout writes several files one after the other. Called more often, it looks once a second.
        """
        if time.monotonic() - self._looked_at < SECONDS_BETWEEN_LOOKS:
            return []
        self._looked_at = time.monotonic()
        found = self._look()
        differ = {name for name, stamp in found.items() if self._stamps.get(name) != stamp}
        settled = sorted((self._changing - differ) & found.keys())
        self._stamps, self._changing = found, differ
        return settled

    def _look(self) -> dict[str, str]:
        return dict(self._look_at_each())

    def _look_at_each(self) -> Iterator[tuple[str, str]]:
        try:
            paths = sorted(self._plugins_dir.iterdir())
        except OSError:  # a checkout may remove the folder for a moment
            return
        for path in paths:
            name = path.name.removesuffix(".zip")
            if "@" not in name or name.startswith("."):
                continue
            try:
                yield name, release_stamp(path)
            except (PluginError, OSError) as error:  # it is being written, or is no release
                yield name, str(error)


class Reloader:
    """Checks changed releases of a sandbox, updates its backend, and deploys again what runs."""

    def __init__(self, running: "Sandbox", on_progress: Callable[[str], None]) -> None:
        self._running = running
        self._on_progress = on_progress
        self._watch = ReleaseWatch(running.plugins_dir)

    def look(self) -> None:
        """Reload what has changed; returns at once when nothing has."""
        for name in self._watch.changed():
            self._reload(name)

    def _reload(self, name: str) -> None:
        with TemporaryDirectory() as cache:
            try:
                release = PluginStore(self._running.plugins_dir, Path(cache), MAX_RELEASE_BYTES).get(name)
            except (PluginError, OSError) as error:
                self._on_progress(f"changed, but not usable: {error}")
                return
            verdicts = [check_action(release, action) for action in release.config.actions]
        problems = dict.fromkeys(verdict.problem for verdict in verdicts if verdict.problem)
        if problems:
            self._on_progress(f"{name} has changed: {'; '.join(problems)}")
            return
        number = self._add_to_backend(release)
        self._on_progress(f"{name} has changed, and is sound; pre-processor {number}")
        if self._is_deployed(name):
            self._on_progress(f"{name} is deployed again, as job {self._deploy(name)}")

    def _add_to_backend(self, release: Release) -> int:
        from worker.sandbox.backend.entities import Releases

        releases = Releases(self._running.state, self._running.plugins_dir)  # which reads them anew
        found = releases.find(release.name)
        return int(found["id"]) if found else 0

    def _is_deployed(self, name: str) -> bool:
        sql = "SELECT 1 FROM serve_applications WHERE application = ? AND status = 'RUNNING'"
        return self._running.state.value(sql, name) is not None

    def _deploy(self, name: str) -> str:
        from shared import DeployMessage, Publisher
        from worker.sandbox.sandbox import AGENT_ID

        job = str(self._running.state.add_job(agent=AGENT_ID))
        with Publisher(self._running.redis_url) as publisher:
            publisher.publish(DeployMessage(job=job, plugin=name, agent=AGENT_ID))
        return job
