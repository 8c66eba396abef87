"""Random kills of workers, Redis, backend and agent while mixed runs are under way."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from tests.chaos.faulty_services import let_fault_last
from tests.chaos.forkserver import Worker
from tests.chaos.mixed_runs import MixedRuns
from tests.chaos.platform_harness import RECOVERY_SECONDS, Fleet, PlatformHarness
from tests.harness.brokers import session_broker
from worker.sandbox import SandboxError, wait_for

SEED = int(os.environ.get("CHAOS_SEED") or 3)
SEEDED = pytest.mark.parametrize("seed", [SEED], ids=lambda seed: f"CHAOS_SEED={seed}")
WORKERS = 3
MAX_DOWN_SECONDS = 1.0
MAX_PUBLISH_SECONDS = 20.0


class RandomKiller:
    """Kills processes of a fleet and starts them again; what is left open is drawn from `random`."""

    def __init__(self, fleet: Fleet, runs: MixedRuns, random: Random) -> None:
        self._fleet, self._runs, self._random = fleet, runs, random
        self.kills: Counter[str] = Counter()
        self._workers = [fleet.start_worker() for _ in range(WORKERS)]

    def kill(self, target: str) -> None:
        """Kill `target`: worker, all workers, redis, rabbitmq, backend or agent."""
        self.kills[target] += 1
        actions: dict[str, Callable[[], None]] = {
            "worker": self._replace_worker,
            "all workers": self._replace_all_workers,
            "redis": self._restart_redis,
            "rabbitmq": self._restart_rabbitmq,
            "backend": self._restart_backend,
            "agent": self._restart_agent,
        }
        actions[target]()

    def _replace_worker(self) -> None:
        self._kill(self._workers.pop(self._random.randrange(len(self._workers))))
        self._workers.append(self._fleet.start_worker())

    def _replace_all_workers(self) -> None:
        for worker in self._workers:
            self._kill(worker)
        self._workers = [self._fleet.start_worker() for _ in range(WORKERS)]

    def _kill(self, worker: Worker) -> None:
        self._runs.faults.kills.append((worker.pid, time.time()))
        worker.kill()

    def _restart_redis(self) -> None:
        with self._runs.faults.outage():
            self._fleet.harness.sandbox.redis.kill()
            let_fault_last(self._random.uniform(0, MAX_DOWN_SECONDS))
            self._fleet.harness.sandbox.redis.start()

    def _restart_rabbitmq(self) -> None:
        with self._runs.faults.outage():
            session_broker.node.restart()

    def _restart_backend(self) -> None:
        with self._runs.faults.outage():
            self._fleet.harness.sandbox.backend.kill()
            let_fault_last(self._random.uniform(0, MAX_DOWN_SECONDS))
            self._fleet.harness.sandbox.backend.start()

    def _restart_agent(self) -> None:
        self._fleet.harness.agent.restart(self._random.uniform(0, MAX_DOWN_SECONDS))


def violations_after_random_kills(
    harness: PlatformHarness, *, runs: int, targets: list[str], seconds: float, seed: int
) -> list[str]:
    """Publish `runs` within `seconds` while `targets` are killed; order and times are drawn from `seed`."""
    random = Random(seed)
    with harness.fleet() as fleet:
        mixed = MixedRuns(fleet, random)
        mixed.prepare(runs)
        killer = RandomKiller(fleet, mixed, random)
        if session_broker.is_rabbitmq:
            targets = [*targets, *["rabbitmq"] * targets.count("redis")]
        random.shuffle(targets)
        jobs = mixed.jobs
        random.shuffle(jobs)

        # When processes are killed while messages arrive, some of them more than once
        for number, target in enumerate(targets):
            for job in jobs[number * len(jobs) // len(targets) : (number + 1) * len(jobs) // len(targets)]:
                for _ in range(random.choice((1, 1, 2, 3))):
                    publish_with_retries(lambda: mixed.publish_one(job))  # noqa: B023 - called at once
            # A random time between two kills.
            time.sleep(random.uniform(0, seconds / len(targets)))
            killer.kill(target)
        last_kill = time.time()

        # Then every run ends, and the backend received what was published
        # (The audit reports the runs that have not ended.)
        with contextlib.suppress(SandboxError):
            mixed.wait_for_ends(RECOVERY_SECONDS + 20)
        recovery_seconds = time.time() - last_kill
        # And publishing every message again changes nothing
        mixed.publish()
        with contextlib.suppress(SandboxError):
            wait_for(lambda: not fleet.unfinished(), RECOVERY_SECONDS + 20, "the end of all messages")
        result = mixed.audit(allow_failures=True)
        result.check(not fleet.unfinished(), f"unfinished: {fleet.unfinished()}")
        print(
            f"seed {seed}: {sum(killer.kills.values())} kills {dict(killer.kills)}, {len(jobs)} runs ended"
            f" (failed for an unavailable dependency: {len(result.failed)}),"
            f" the last {recovery_seconds:.1f} s after the last kill;"
            f" ends reported twice: {result.ends_reported_twice},"
            f" tasks written twice: {result.tasks_written_twice}, violations: {result.violations}"
        )
        return result.violations


def publish_with_retries(publish: Callable[[], None]) -> None:
    """Retry while Redis is down, as the backend's publisher does."""
    deadline = time.monotonic() + MAX_PUBLISH_SECONDS
    while True:
        try:
            return publish()
        except Exception:  # an error of kombu or redis-py
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.timeout(110)
@SEEDED
def test_few_random_kills_lose_no_run_and_repeat_no_effect(harness: PlatformHarness, seed: int) -> None:
    targets = ["worker"] * 4 + ["redis", "backend"]
    assert violations_after_random_kills(harness, runs=30, targets=targets, seconds=4.0, seed=seed) == []


@pytest.mark.chaos
@pytest.mark.timeout(300)
@SEEDED
def test_many_random_kills_lose_no_run_and_repeat_no_effect(harness: PlatformHarness, seed: int) -> None:
    targets = ["worker"] * 25 + ["all workers"] * 2 + ["redis"] * 4 + ["backend"] * 4 + ["agent"] * 3
    assert violations_after_random_kills(harness, runs=100, targets=targets, seconds=40.0, seed=seed) == []
