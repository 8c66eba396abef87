"""Outcomes of two runs of the same tests, name by name, and the differences that are expected."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

EXPECTED = Path(__file__).with_name("expected.yaml")


@dataclass(frozen=True)
class Outcome:
    """What became of one test: passed, failed, skipped, xfailed or absent; the first line of its error."""

    kind: str
    message: str = ""


ABSENT = Outcome("absent")
"""The run has no such test: it was not collected, or the process ended before it."""

Outcomes = Mapping[str, Outcome]


def read_outcomes(file: Path) -> dict[str, Outcome]:
    """The outcomes that `tests.foreign.plugin` has written; a failed set-up or clean-up fails the test."""
    found: dict[str, Outcome] = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for record in map(json.loads, lines):
        known = found.get(record["name"])
        if known is None or known.kind != "failed":
            found[record["name"]] = Outcome(record["outcome"], record["message"])
    return found


@dataclass(frozen=True)
class Difference:
    """A test that does not do the same on both transports, or that was expected not to."""

    name: str
    stock: Outcome
    worker: Outcome
    reason: str | None
    """Why it was expected to differ; None when it was not."""

    @property
    def is_expected(self) -> bool:
        """Whether it differs, and was expected to."""
        return self.reason is not None and self.stock.kind != self.worker.kind

    def __str__(self) -> str:
        lines = [f"{self.name}: stock {self.stock.kind}, worker {self.worker.kind}"]
        if self.reason is not None:
            lines.append(f"expected to differ: {self.reason}")
        lines += [one.message for one in (self.stock, self.worker) if one.message]
        return "\n    ".join(lines)


def read_expected(project: str) -> dict[str, str]:
    """The reasons of the expected differences of a project's tests, by their names without parameters."""
    return _reasons(yaml.safe_load(EXPECTED.read_text(encoding="utf-8"))[project])


def read_not_run(suite: str) -> dict[str, str]:
    """The reasons of the tests that a suite leaves out, by their names."""
    return _reasons(yaml.safe_load(EXPECTED.read_text(encoding="utf-8"))["not_run"].get(suite, []))


def _reasons(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {test: " ".join(entry["reason"].split()) for entry in entries for test in entry["tests"]}


def compare(stock: Outcomes, worker: Outcomes, expected: Mapping[str, str]) -> list[Difference]:
    """All tests whose outcomes differ, and those that were expected to."""
    found = []
    for name in sorted({*stock, *worker}):
        reason = expected.get(name.partition("[")[0])
        difference = Difference(name, stock.get(name, ABSENT), worker.get(name, ABSENT), reason)
        if reason is not None or difference.stock.kind != difference.worker.kind:
            found.append(difference)
    return found


def unknown_names(stock: Outcomes, expected: Mapping[str, str]) -> list[str]:
    """Names among the expected differences that no test has."""
    return sorted(set(expected) - {name.partition("[")[0] for name in stock})


def summarise(outcomes: Iterable[Outcome]) -> str:
    """How many tests there are of each kind."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in outcomes).most_common())
