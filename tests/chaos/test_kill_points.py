"""A worker is killed at a point and another one starts: the run ends in time, and no effect is repeated."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.chaos.effect_log import Faults
from tests.chaos.fake_serve import ENDLESS, RESULT
from tests.chaos.forkserver import Worker
from tests.chaos.kill_points import KillPoint, Kind, all_points
from tests.chaos.platform_harness import (
    DATABASES,
    RECOVERY_SECONDS,
    RUNS_WHOLE,
    Fleet,
    PlatformHarness,
    Row,
)
from worker.runs.reports.webhook import LOCK_SECONDS
from worker.sandbox import SandboxError, wait_for
from worker.sandbox.seed import SeededProject
from worker.workflow.ended_runs import EndedRuns

MAX_SECONDS_TO_CRASH = 60.0
"""Fifteen workers start at the same time on two cores that other processes use, too."""
LATE_START_SECONDS = 20.0
"""Delay of a late successor: longer than the timeout of a dispatch without any reply."""
MAX_START_SECONDS = LATE_START_SECONDS + 30.0
SWEEP_RECOVERY_SECONDS = RECOVERY_SECONDS + 10.0
"""Recovery after a lost message: the run's timeout and the interval of the sweep come first."""
UNDISTURBED_SECONDS = 4.0
"""Duration of a run without faults on a busy machine."""
SECOND_REPORT_SECONDS = 12.0
"""Within this time a repeated report would arrive, if there were one."""
WEBHOOK_SECONDS = LOCK_SECONDS + 15.0
TASKS = 16
"""Four chunks: one more than are published at once, with either broker."""
DEPLOY_KINDS = frozenset({Kind.DEPLOY, Kind.WAITING_DEPLOY})
FILE_KINDS = frozenset({Kind.FILE, Kind.RETRY})
WHOLE_KINDS = frozenset({Kind.WHOLE, Kind.WHOLE_STOP})
STOPPED_KINDS = frozenset({Kind.STOP, Kind.WHOLE_STOP})


def _batches(points: list[KillPoint]) -> Iterator[list[KillPoint]]:
    """As many points at the same time as there can be fleets."""
    for start in range(0, len(points), len(DATABASES)):
        yield points[start : start + len(DATABASES)]


SHORT_TEST = [point for point in all_points() if point.in_short_test]
BATCHES = list(_batches(all_points()))


@dataclass
class Scenario:
    """One kill point, on a fleet of its own."""

    point: KillPoint
    fleet: Fleet
    job: str = ""
    code: str = ""
    project: SeededProject | None = None
    crash: Row | None = None
    successor: Worker | None = None
    successor_start_time: float = 0.0
    successor_ready_time: float | None = None
    stopped: bool = False
    violations: list[str] = field(default_factory=list)

    @property
    def subject(self) -> str:
        return self.code if self.point.of_pre_processor else self.job

    def start(self) -> None:
        """Start the worker that will crash, and publish the run's message."""
        fleet, kind = self.fleet, self.point.kind
        if kind in DEPLOY_KINDS:
            waits = kind is Kind.WAITING_DEPLOY
            self.code = fleet.harness.new_code()
            plugin = fleet.harness.new_plugin(self.code)
            self.job = fleet.new_job(plugin, "deployment")
            fleet.request_crash(self.point.point, self.subject)
            fleet.start_worker()
            if waits:
                fleet.harness.agent.deny(plugin, times=1)
            fleet.deploy(self.job, plugin, **({"wait_for_capacity": 60} if waits else {}))
            return
        if kind in WHOLE_KINDS:
            self._start_whole()
            return
        self.job = fleet.new_job("echo@1.0.0", "to_task")
        self.project = fleet.new_project(TASKS)
        if kind not in FILE_KINDS:
            self.code = fleet.new_pre_processor(
                broken=kind is Kind.FAILED_PRE_PROCESSOR, deploys=kind is not Kind.STOP
            )
            fleet.release_id(self.code)
        if kind is not Kind.STOP:
            fleet.request_crash(self.point.point, self.subject)
        fleet.start_worker()
        if kind is Kind.FILE:
            fleet.to_task_by_file(self.job, self.project)
        elif kind is Kind.RETRY:
            fleet.retry(self.job, self.project)
        else:
            fleet.to_task_by_inference(self.job, self.project, self.code)

    def _start_whole(self) -> None:
        fleet, stops = self.fleet, self.point.kind is Kind.WHOLE_STOP
        plugin = fleet.harness.new_plugin(appended=RUNS_WHOLE)
        self.job = fleet.new_job(plugin, "to_task")
        if not stops:
            fleet.request_crash(self.point.point, self.subject)
        fleet.start_worker()
        params = {"target_specification_name": "label_1", "description": ENDLESS if stops else None}
        fleet.to_task(self.job, fleet.new_project(1), plugin, **params)

    def _waits(self) -> bool:
        """Whether a run that is to be stopped has come so far."""
        if self.point.kind is Kind.WHOLE_STOP:
            return bool(self.fleet.harness.serve.ray_jobs(self.job))
        return bool(self.fleet.dispatch_count(self.code))

    def poll_crash(self) -> bool:
        """Whether the worker has crashed. Stops a STOP run first; starts the successor after the crash."""
        if self.crash is not None:
            return True
        if self.point.kind in STOPPED_KINDS and not self.stopped:
            if self._waits():
                self.stopped = True
                self.fleet.request_crash(self.point.point, self.subject)
                self.fleet.stop(self.job)
            return False
        self.crash = self.fleet.crash(self.point.point, self.subject)
        if self.crash is not None:
            if self.point.messages_lost:
                self.fleet.delete_messages()
            self._start_successor_when_due()
        return self.crash is not None

    def _start_successor_when_due(self) -> None:
        assert self.crash is not None
        due = self.crash["time"] + (LATE_START_SECONDS if self.point.late_successor else 0.0)
        if self.successor is None and time.time() >= due:
            self.successor_start_time = time.time()
            self.successor = self.fleet.start_worker(CHAOS_CRASHES="")

    def poll_end(self) -> bool:
        """Whether the run has ended, or its deadline has passed for a while."""
        self._start_successor_when_due()
        if self.successor_ready_time is None and self.successor is not None and self.successor.is_ready:
            self.successor_ready_time = time.time()
        return self.fleet.has_ended(self.job) or time.time() > self.deadline + UNDISTURBED_SECONDS

    @property
    def deadline(self) -> float:
        """The time by which the run has to end: the recovery begins when the successor is ready.

        It may take longer by the time that the successor needed to start: the workers of a batch recover at
        the same time, as they started, and share the cores.
        """
        assert self.crash is not None
        ready = self.successor_ready_time
        if ready is None:
            ready, start_seconds = self.crash["time"] + MAX_START_SECONDS, 0.0
        else:
            start_seconds = ready - self.successor_start_time
        recovery = SWEEP_RECOVERY_SECONDS if self.point.messages_lost else RECOVERY_SECONDS
        return ready + recovery + start_seconds

    def audit(self) -> tuple[float, int]:
        """Seconds from the crash to the end, and how many tasks were written twice."""
        assert self.crash is not None
        auditor = self.fleet.auditor(Faults(kills=[(self.crash["pid"], self.crash["time"])]))
        kind = self.point.kind
        failed, stopped = {Kind.FAILED_PRE_PROCESSOR: "FAILED"}, dict.fromkeys(STOPPED_KINDS, "STOPPED")
        expected = {**failed, **stopped}.get(kind, "SUCCEEDED")
        row = auditor.check_job(self.job)
        check = auditor.result.check
        check(row["status"] == expected, f"{row['status']}: {row['result']}")
        if kind in WHOLE_KINDS:
            stopped_jobs = [is_stopped for _, is_stopped in self.fleet.harness.serve.ray_jobs(self.job)]
            check(stopped_jobs == [kind is Kind.WHOLE_STOP], f"Ray jobs, whether stopped: {stopped_jobs}")
            check(kind is Kind.WHOLE_STOP or row["result"] == RESULT, f"result {row['result']}")
        elif kind in DEPLOY_KINDS:
            auditor.check_deployment(self.job)
        elif kind not in FILE_KINDS:
            auditor.check_dispatched_once(self.code)
        if kind not in FILE_KINDS | WHOLE_KINDS:
            submissions = self.fleet.harness.serve.submission_count(f"{self.code}@1.0.0")
            check(submissions == (expected == "SUCCEEDED"), f"submitted {submissions} times")
        if self.project is not None and expected == "SUCCEEDED":
            auditor.check_tasks(self.job, self.project)
        kept = EndedRuns(self.fleet.redis).get(self.job)
        check(kept is not None and kept.status == expected, f"kept of the ended run: {kept}")
        seconds = row["updated"] - self.crash["time"]
        events = self.fleet.harness.webhook.events(self.job)
        said = {(event_id, event["type"]) for event_id, event in events}
        is_posted = len(said) == 1 and all(kind == f"run.{expected.lower()}" for _, kind in said)
        check(is_posted, f"webhook: {said}")
        check(row["updated"] <= self.deadline, f"ended {seconds:.1f} s after the crash")
        self.violations = auditor.result.violations
        return seconds, auditor.result.tasks_written_twice


def _settings(point: KillPoint, harness: PlatformHarness) -> dict[str, str]:
    limits = {"WORKER_TENANT_CHUNKS": "1", "WORKER_TENANT_RUNS": "1"} if point.limits_tenants else {}
    return {**harness.webhook.settings, **limits}


def violations_after_crashes(
    points: list[KillPoint], harness: PlatformHarness, *, on_rabbitmq: bool | None = None
) -> list[str]:
    """Crash a worker at each point, all at the same time, on fleets of their own."""
    with contextlib.ExitStack() as stack:
        settings = [_settings(point, harness) for point in points]
        fleets = [stack.enter_context(harness.fleet(on_rabbitmq=on_rabbitmq, **each)) for each in settings]
        scenarios = [Scenario(point, fleet) for point, fleet in zip(points, fleets, strict=True)]
        for scenario in scenarios:
            scenario.start()
        # When each worker has crashed at its point, and the next one is started
        # (The lists make each call of `wait_for` poll every scenario.)
        with contextlib.suppress(SandboxError):
            wait_for(
                lambda: False not in [s.poll_crash() for s in scenarios], MAX_SECONDS_TO_CRASH, "crashes"
            )
        not_reached = [scenario for scenario in scenarios if scenario.crash is None]
        crashed = [scenario for scenario in scenarios if scenario.crash is not None]
        # Then every run ends, with the effects of an undisturbed one
        max_seconds = 2 * (MAX_START_SECONDS + SWEEP_RECOVERY_SECONDS)
        wait_for(lambda: False not in [s.poll_end() for s in crashed], max_seconds, "ends")
        with contextlib.suppress(SandboxError):
            wait_for(
                lambda: all(s.fleet.message_count() == 0 for s in crashed),
                SECOND_REPORT_SECONDS,
                "the end of all messages",
            )
        # And the webhook hears of it, after a kill amid an attempt once that one must have ended
        with contextlib.suppress(SandboxError):
            wait_for(lambda: all(harness.webhook.events(s.job) for s in crashed), WEBHOOK_SECONDS, "webhooks")
        numbers = [scenario.audit() for scenario in crashed]
    for scenario, (seconds, twice) in zip(crashed, numbers, strict=True):
        print(f"| {scenario.point} | {seconds:.1f} s | {twice} | {'; '.join(scenario.violations) or 'ok'} |")
    slowest = max((seconds for seconds, _ in numbers), default=0.0)
    twice = sum(twice for _, twice in numbers)
    print(f"{len(crashed)} crashes, slowest recovery {slowest:.1f} s, {twice} tasks written twice")
    return [
        *(f"{scenario.point}: not reached" for scenario in not_reached),
        *(f"{scenario.point}: {violation}" for scenario in crashed for violation in scenario.violations),
    ]


@pytest.mark.timeout(180)
def test_a_kill_at_these_points_costs_no_run_and_no_effect(harness: PlatformHarness) -> None:
    points = [point for point in SHORT_TEST if point.kind not in WHOLE_KINDS]
    assert len(points) <= len(DATABASES)
    assert violations_after_crashes(points, harness) == []


@pytest.mark.timeout(180)
def test_a_kill_amid_a_whole_run_leaves_one_ray_job(harness: PlatformHarness) -> None:
    points = [point for point in SHORT_TEST if point.kind in WHOLE_KINDS]
    assert violations_after_crashes(points, harness) == []


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"{batch[0]} and {len(batch) - 1} more")
def test_a_kill_at_any_point_costs_no_run_and_no_effect(
    harness: PlatformHarness, batch: list[KillPoint]
) -> None:
    assert violations_after_crashes(batch, harness) == []
