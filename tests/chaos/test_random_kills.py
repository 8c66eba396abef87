"""Random kills of workers, Redis, backend and agent while a hundred mixed runs are in the air."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from tests.chaos.forkserver import Worker
from tests.chaos.mixed_runs import MixedRuns
from tests.chaos.platform_harness import RECOVERY, PlatformHarness, Site
from worker.sandbox import SandboxError, wait_for

SEED = int(os.environ.get("CHAOS_SEED") or 3)
SEEDED = pytest.mark.parametrize("seed", [SEED], ids=lambda seed: f"CHAOS_SEED={seed}")
WORKERS = 3


class Reaper:
    """Kills what it draws, and brings it up again."""

    def __init__(self, site: Site, runs: MixedRuns, random: Random) -> None:
        self._site, self._runs, self._random = site, runs, random
        self.killed: Counter[str] = Counter()
        self._annotation_runtime = [site.worker() for _ in range(WORKERS)]

    def strike(self, what: str) -> None:
        """One kill; `what` names it."""
        self.killed[what] += 1
        kill: dict[str, Callable[[], None]] = {
            "worker": self._worker,
            "all workers": self._all_workers,
            "redis": self._redis,
            "backend": self._backend,
            "agent": self._agent,
        }
        kill[what]()

    def _worker(self) -> None:
        self._kill(self._annotation_runtime.pop(self._random.randrange(len(self._annotation_runtime))))
        self._annotation_runtime.append(self._site.worker())

    def _kill(self, victim: Worker) -> None:
        self._runs.disturbances.deaths.append((victim.pid, time.time()))
        victim.kill()

    def _all_workers(self) -> None:
        for victim in self._annotation_runtime:
            self._kill(victim)
        self._annotation_runtime = [self._site.worker() for _ in range(WORKERS)]

    def _redis(self) -> None:
        with self._runs.disturbances.outage():
            self._site.harness.sandbox.redis.kill()
            time.sleep(self._random.uniform(0, 1))
            self._site.harness.sandbox.redis.start()

    def _backend(self) -> None:
        with self._runs.disturbances.outage():
            self._site.harness.sandbox.backend.kill()
            time.sleep(self._random.uniform(0, 1))
            self._site.harness.sandbox.backend.start()

    def _agent(self) -> None:
        self._site.harness.agent.restart(self._random.uniform(0, 1))


def rage(harness: PlatformHarness, *, runs: int, strikes: list[str], over: float, seed: int) -> list[str]:
    """Publish `runs` within `over` seconds, while the strikes fall in an order and at times of `seed`.

    Returns what is wrong afterwards, in words.
    """
    random = Random(seed)
    with harness.site() as site:
        mixed = MixedRuns(site, random)
        mixed.prepare(runs)
        reaper = Reaper(site, mixed, random)
        random.shuffle(strikes)
        share = over / len(strikes)
        jobs = mixed.jobs
        random.shuffle(jobs)

        # When things die while messages come in, some of them more than once
        for number, strike in enumerate(strikes):
            for job in jobs[number * len(jobs) // len(strikes) : (number + 1) * len(jobs) // len(strikes)]:
                for _ in range(random.choice((1, 1, 2, 3))):
                    with_timeout(lambda: mixed.publish_one(job))  # noqa: B023 - called at once
            time.sleep(random.uniform(0, share))
            reaper.strike(strike)
        last = time.time()

        # Then every run ends, and the backend received what was published
        with contextlib.suppress(Exception):
            mixed.wait_for_ends(RECOVERY + 20)
        took = time.time() - last
        # And stays as it is when every message comes once more
        mixed.publish()
        with contextlib.suppress(SandboxError):
            wait_for(lambda: not site.leftovers(), RECOVERY + 20, "silence")
        findings = mixed.audit(may_fail=True)
        findings.expect(not site.leftovers(), f"left: {site.leftovers()}")
        print(
            f"seed {seed}: {sum(reaper.killed.values())} kills {dict(reaper.killed)}, {len(jobs)} runs ended"
            f" (failed for a dead dependency: {len(findings.failed)}), the last {took:.1f} s after the last"
            f" kill, ends reported twice: {findings.ended_twice}, written twice: {findings.written_twice}"
            f", wrong: {findings.wrong}"
        )
        return findings.wrong


def with_timeout(publish: Callable[[], None]) -> None:
    """A publisher keeps trying while Redis is away, as a backend does."""
    for _ in range(50):
        try:
            return publish()
        except Exception:  # of kombu's or redis-py's
            time.sleep(0.2)
    return publish()


@pytest.mark.timeout(110)
@SEEDED
def test_a_short_rage_loses_nothing_and_doubles_nothing(harness: PlatformHarness, seed: int) -> None:
    strikes = ["worker"] * 4 + ["redis", "backend"]
    assert rage(harness, runs=30, strikes=strikes, over=4.0, seed=seed) == []


@pytest.mark.chaos
@pytest.mark.timeout(300)
@SEEDED
def test_a_long_rage_loses_nothing_and_doubles_nothing(harness: PlatformHarness, seed: int) -> None:
    strikes = ["worker"] * 25 + ["all workers"] * 2 + ["redis"] * 4 + ["backend"] * 4 + ["agent"] * 3
    assert rage(harness, runs=100, strikes=strikes, over=40.0, seed=seed) == []
