"""Runs the tests of celery and kombu on this project's Redis transport and on the stock one, and compares.

    python -m tests.foreign [--quick] [suite ...]

Logs and outcomes are in `.foreign/runs`.

A test whose outcomes differ unexpectedly is repeated on both transports, because many of these tests depend
on time; what is no difference then is listed as unsteady. The exit code is 1 when a difference remains that
`expected.yaml` does not have, or when that page has one that does not exist.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.foreign.comparison import (
    Difference,
    Outcome,
    compare,
    read_expected,
    read_not_run,
    read_outcomes,
    summarise,
    unknown_names,
)
from tests.foreign.sources import CACHE, ROOT, fetch_tests
from worker.sandbox import SandboxError, wait_for
from worker.sandbox.processes import clean_environment, start_process
from worker.sandbox.servers import RedisServer

TRANSPORTS = ("kombu", "worker")
MAX_RUN_SECONDS = 1200
MAX_TEST_SECONDS = 180
"""Some tests take two minutes. One whose clean-up finds the worker busy for ever ends after this time."""
REPEATS = 2


@dataclass(frozen=True)
class Suite:
    """Tests of one project."""

    project: str
    tests: tuple[str, ...]
    quick: tuple[str, ...]
    """What --quick runs of them."""
    pool: str | None = None
    """The pool of celery's worker."""


CELERY_TESTS, CELERY_QUICK = ("t/integration",), ("t/integration/test_tasks.py",)
SUITES = {
    "kombu": Suite("kombu", ("t/integration/test_redis.py",), ("t/integration/test_redis.py",)),
    "celery-threads": Suite("celery", CELERY_TESTS, CELERY_QUICK, "threads"),
    "celery-prefork": Suite("celery", CELERY_TESTS, CELERY_QUICK, "prefork"),
}


class Run:
    """One suite on one transport: a process of pytest and a Redis of its own."""

    def __init__(self, suite: str, transport: str, sources: Path) -> None:
        self._suite, self._transport, self._sources = SUITES[suite], transport, sources
        self._not_run = read_not_run(suite)
        self._folder = CACHE / "runs" / f"{suite}-{transport}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def execute(self, tests: Sequence[str]) -> dict[str, Outcome]:
        """Run these tests; returns their outcomes."""
        outcomes, log = self._folder / "outcomes.jsonl", self._folder / "pytest.log"
        for file in (outcomes, log):
            file.unlink(missing_ok=True)
        with TemporaryDirectory() as name:
            server = RedisServer(Path(name))
            server.start()
            try:
                self._await_pytest(server, tests, outcomes, log)
            finally:
                server.stop()
        return read_outcomes(outcomes)

    def _await_pytest(self, server: RedisServer, tests: Sequence[str], outcomes: Path, log: Path) -> None:
        command = [sys.executable, "-m", "pytest", "--timeout", str(MAX_TEST_SECONDS)]
        command += ["-p", "tests.foreign.plugin", "-p", "celery.contrib.pytest", "-p", "no:cacheprovider"]
        command += [part for name in self._not_run for part in ("--deselect", name)]
        command += ["--continue-on-collection-errors", "--durations", "20", *tests]
        env = self._environment(server) | {"FOREIGN_OUTCOMES": str(outcomes)}
        name = f"pytest on {self._transport}"
        process = start_process(name, command, log=log, env=env, cwd=self._sources)
        try:
            # What it has not come to is absent, and repeated.
            with suppress(SandboxError):
                wait_for(lambda: not process.alive, MAX_RUN_SECONDS, "the end of pytest")
        finally:
            process.stop()

    def _environment(self, server: RedisServer) -> dict[str, str]:
        """What both projects' tests read, and what `tests.foreign.plugin` does."""
        commands = Path(sys.executable).parent
        return clean_environment() | {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TEST_BROKER": server.url,
            "TEST_BACKEND": server.url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "REDIS_6379_TCP": str(server.port),
            "FOREIGN_TRANSPORT": self._transport,
            "FOREIGN_POOL": self._suite.pool or "",
        }


def run_both(suite: str, tests: Sequence[str]) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
    """The outcomes on kombu's transport and the worker's, side by side, because the tests mostly wait."""
    sources = fetch_tests(SUITES[suite].project)
    runs = [Run(suite, transport, sources) for transport in TRANSPORTS]
    with ThreadPoolExecutor(len(runs)) as executor:
        stock, worker = executor.map(lambda run: run.execute(tests), runs)
    return stock, worker


def check(suite: str, *, quick: bool) -> bool:
    """Run a suite and print what differs; returns whether all of that is expected."""
    begun = time.monotonic()
    expected = read_expected(SUITES[suite].project)
    stock, worker = run_both(suite, SUITES[suite].quick if quick else SUITES[suite].tests)
    differences = compare(stock, worker, expected)
    surprises = {one.name for one in differences if not one.is_expected}
    unsteady: set[str] = set()
    for _ in range(REPEATS):
        if not surprises:
            break
        again = compare(*run_both(suite, sorted(surprises)), expected)
        differences = [one for one in differences if one.is_expected] + again
        still = {one.name for one in again if not one.is_expected}
        unsteady |= surprises - still
        surprises = still
    unknown = [] if quick else unknown_names(stock, expected)
    lines = [
        f"{len(stock)} tests on the stock transport: {summarise(stock.values())}",
        f"{len(worker)} tests on the worker's: {summarise(worker.values())}",
        *describe(differences, unsteady),
        *(f"not run: {name}: {reason}" for name, reason in read_not_run(suite).items()),
        *(f"expected.yaml names a test that does not exist: {name}" for name in unknown),
        f"{time.monotonic() - begun:.0f} s, {len(surprises)} unexpected differences",
    ]
    print("\n".join(f"{suite}: {line}" for line in lines), flush=True)
    # A run without a test that passes would be equal to any other one.
    return any(one.kind == "passed" for one in stock.values()) and not surprises and not unknown


def describe(differences: Iterable[Difference], unsteady: Iterable[str]) -> Iterator[str]:
    """A line for each difference; the expected ones below their reasons."""
    expected = defaultdict(list)
    for difference in differences:
        if difference.is_expected:
            expected[difference.reason].append(difference)
        else:
            yield f"UNEXPECTED {difference}"
    for name in sorted(unsteady):
        yield f"unsteady, did not differ when it was repeated: {name}"
    for reason, all_of_it in expected.items():
        yield f"{len(all_of_it)} differ as expected: {reason}"
        for one in all_of_it:
            yield f"    {one.name}: stock {one.stock.kind}, worker {one.worker.kind}"


def main() -> int:
    """Run the suites side by side, because their tests mostly wait; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.foreign", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="of celery only the tests of tasks, on threads")
    parser.add_argument("suites", nargs="*", metavar="suite", help=", ".join(SUITES))
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    chosen = arguments.suites or (["kombu", "celery-threads"] if arguments.quick else list(SUITES))
    for suite in chosen:
        fetch_tests(SUITES[suite].project)
    with ThreadPoolExecutor(len(chosen)) as executor:
        results = list(executor.map(lambda suite: check(suite, quick=arguments.quick), chosen))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
