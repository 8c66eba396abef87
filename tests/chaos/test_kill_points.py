"""A worker dies at a point, another one lives: its run ends in time, and nothing happens twice."""

import contextlib
import time
from dataclasses import dataclass, field

import pytest

from tests.chaos.effect_log import Disturbances
from tests.chaos.forkserver import Worker
from tests.chaos.kill_points import KillPoint, Kind, all_points, in_waves
from tests.chaos.platform_harness import RECOVERY, SITES, PlatformHarness, Row, Site
from worker.sandbox import wait_for
from worker.sandbox.seed import SeededProject

MAX_SECONDS_TO_POINT = 60.0
"""Fifteen workers come up at once, on two cores that others may use, too."""
LATE = 20.0
"""Seconds: longer than a dispatch of which nobody has heard is waited for."""
MAX_START_SECONDS = LATE + 30.0
TASKS = 12
SHORT_FORM = [point for point in all_points() if point.kept]
WAVES = in_waves(all_points(), len(SITES))
SWEEP = RECOVERY + 10.0
"""Seconds within which a lost message is noticed: the run's timeout, and the time between two sweeps."""
STEPS_AFTER = 4.0
"""Seconds that a run takes which nobody disturbs, on a busy machine."""


@dataclass
class Scene:
    """One kill point on its site."""

    kill: KillPoint
    site: Site
    job: str = ""
    code: str = ""
    project: SeededProject | None = None
    death: Row | None = None
    successor: Worker | None = None
    alive_since: float | None = None
    """The time by which the successor took messages."""
    mistakes: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def subject(self) -> str:
        return self.code if self.kill.of_plugin else self.job

    @property
    def longest(self) -> float:
        return SWEEP if self.kill.lost else RECOVERY

    def begin(self) -> None:
        """Publish what the crash_injection worker finds."""
        site, kind = self.site, self.kill.kind
        if kind is Kind.DEPLOY:
            self.code = site.harness.new_code()
            plugin = site.harness.plugin(self.code)
            self.job = site.new_job(plugin, "deployment")
            site.fatal(self.kill.point, self.subject)
            site.worker()
            site.deploy(self.job, plugin)
            return
        self.job = site.new_job("echo@1.0.0", "to_task")
        self.project = site.project(TASKS)
        if kind is not Kind.FILE:
            self.code = site.pre_processor(broken=kind is Kind.REJECTED)
            site.release(self.code)
        if kind is Kind.STOP:
            # Its deployment never comes.
            site.harness._broker_bridge.deliver_to(self.code, 0)
        else:
            site.fatal(self.kill.point, self.subject)
        site.worker()
        if kind is Kind.FILE:
            site.to_task_by_file(self.job, self.project)
        else:
            site.to_task_by_inference(self.job, self.project, self.code)

    def look(self) -> bool:
        """Whether it died; then another worker comes up."""
        if self.death is not None:
            return True
        if self.kill.kind is Kind.STOP and not self.stopped:
            if self.site.dispatches(self.code):
                self.stopped = True
                self.site.fatal(self.kill.point, self.subject)
                self.site.stop(self.job)
            return False
        self.death = self.site.death(self.kill.point, self.subject)
        if self.death is not None:
            if self.kill.lost:
                self.site.lose_messages()
            self._start_successor()
        return self.death is not None

    def _start_successor(self) -> None:
        assert self.death is not None
        due = self.death["time"] + (LATE if self.kill.late else 0.0)
        if self.successor is None and time.time() >= due:
            self.successor = self.site.worker(CHAOS_DEATHS="")

    def is_done(self) -> bool:
        """Whether the run is over, or should have been for a while."""
        self._start_successor()
        if self.alive_since is None and self.successor is not None and self.successor.is_ready:
            self.alive_since = time.time()
        return self.site.is_over(self.job) or time.time() > self.latest + STEPS_AFTER

    @property
    def latest(self) -> float:
        """Until when the next live worker has carried the run to its end; before it lives it cannot."""
        assert self.death is not None
        return (self.alive_since or self.death["time"] + MAX_START_SECONDS) + self.longest

    def audit(self) -> tuple[float, int]:
        """Seconds from the death to the end, and how many tasks were written twice."""
        assert self.death is not None
        auditor = self.site.auditor(Disturbances(deaths=[(self.death["pid"], self.death["time"])]))
        expected = {Kind.REJECTED: "FAILED", Kind.STOP: "STOPPED"}.get(self.kill.kind, "SUCCEEDED")
        row = auditor.job(self.job)
        say = auditor.findings.expect
        say(row["status"] == expected, f"{row['status']}: {row['result']}")
        if self.kill.kind is Kind.DEPLOY:
            auditor.deployment(self.job)
        elif self.kill.kind is not Kind.FILE:
            auditor.dispatched_once(self.code)
        if self.kill.kind is not Kind.FILE:
            submitted = "SELECT count(*) FROM submissions WHERE name = ?"
            [(times,)] = self.site.harness.serve.rows(submitted, f"{self.code}@1.0.0")
            say(times == (expected == "SUCCEEDED"), f"submitted {times} times")
        if self.project is not None and expected == "SUCCEEDED":
            auditor.tasks(self.job, self.project)
        took = row["updated"] - self.death["time"]
        say(row["updated"] <= self.latest, f"took {took:.1f} s after the kill")
        self.mistakes = auditor.findings.wrong
        return took, auditor.findings.written_twice


def play(kills: list[KillPoint], harness: PlatformHarness) -> list[str]:
    """All of them at once, each on a site of its own; returns what is wrong afterwards, in words."""
    with contextlib.ExitStack() as stack:
        scenes = [Scene(kill, stack.enter_context(harness.site())) for kill in kills]
        for scene in scenes:
            scene.begin()
        # When each worker has died at its point, and the next one has come up
        with contextlib.suppress(Exception):
            wait_for(lambda: False not in [s.look() for s in scenes], MAX_SECONDS_TO_POINT, "deaths")
        unreached = [str(scene.kill) for scene in scenes if scene.death is None]
        dead = [scene for scene in scenes if scene.death is not None]
        # Then every run ends, and its effects are what they would have been
        wait_for(lambda: False not in [s.is_done() for s in dead], 2 * (MAX_START_SECONDS + SWEEP), "ends")
        with contextlib.suppress(Exception):
            # The second copy of a report, should there be one, would have come by now.
            wait_for(lambda: all(_is_quiet(s) for s in dead), 12, "silence")
        numbers = [scene.audit() for scene in dead]
    longest = max((took for took, _ in numbers), default=0.0)
    for scene, (took, twice) in zip(dead, numbers, strict=True):
        print(f"| {scene.kill} | {took:.1f} s | {twice} | {'; '.join(scene.mistakes) or 'ok'} |")
    print(f"killed {len(dead)}, longest recovery {longest:.1f} s, written twice {sum(n for _, n in numbers)}")
    wrong = [f"{scene.kill}: {mistake}" for scene in dead for mistake in scene.mistakes]
    return [*(f"{kill}: not reached" for kill in unreached), *wrong]


def _is_quiet(scene: Scene) -> bool:
    return scene.site.messages() == 0


@pytest.mark.timeout(180)
def test_a_kill_at_these_points_costs_no_run_and_no_effect(harness: PlatformHarness) -> None:
    assert play(SHORT_FORM[: len(SITES)], harness) == []


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("wave", WAVES, ids=lambda wave: f"{wave[0]} and {len(wave) - 1} more")
def test_a_kill_at_any_point_costs_no_run_and_no_effect(
    harness: PlatformHarness, wave: list[KillPoint]
) -> None:
    assert play(wave, harness) == []
