"""What the benchmarks find: rows that are printed as a table, kept as JSON and drawn as a picture.

A row is a figure of the worker beside the same figure of a bare loop or library in the same run, and the goal
for their ratio, or for the figure itself.
"""

import argparse
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import CONSOLE_SVG_FORMAT, Console  # type: ignore[attr-defined] # not marked as exported
from rich.table import Table
from rich.text import Text

RESULTS = Path(__file__).parents[1] / "results"
WIDTH = 150
BAR = 24
"""Characters of a bar; the goal stands in its middle."""
BAR_RANGE = 4.0
"""At the ends of a bar a figure is so many times better or worse than its goal."""
MAX_TIMES = 1e6
"""Beyond it nothing is told apart: a figure may be 0, or infinite, as the delay of lines that never came."""
SVG_FORMAT = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


@dataclass(frozen=True)
class Goal:
    """What the ratio must be, or the worker's own figure."""

    limit: float
    at_most: bool
    of_figure: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"

    def times_better(self, found: float) -> float:
        """How many times better than the goal: 1 at the goal, less when it is missed."""
        found = max(found, self.limit / MAX_TIMES)
        better = self.limit / found if self.at_most else found / self.limit
        return min(max(better, 1 / MAX_TIMES), MAX_TIMES)


def at_least(limit: float) -> Goal:
    """The ratio must be so much or more."""
    return Goal(limit, at_most=False)


def at_most(limit: float, *, of_figure: bool = False) -> Goal:
    """The ratio, or the worker's own figure, must be so much or less."""
    return Goal(limit, at_most=True, of_figure=of_figure)


@dataclass(frozen=True)
class Row:
    """A figure of the worker, and what it is compared with."""

    what: str
    figure: float
    unit: str
    against: str = ""
    reference: float | None = None
    """The figure of what it is compared with."""
    goal: Goal | None = None
    note: str = ""
    """What a reader must know, such as a spread or a count."""
    script: str = ""

    @property
    def ratio(self) -> float | None:
        """The figure against the other one; None where there is none, or nothing."""
        return self.figure / self.reference if self.reference else None

    @property
    def times_better(self) -> float | None:
        """How many times better than the goal; None where there is no goal, or nothing to hold against it."""
        found = self.figure if self.goal is None or self.goal.of_figure else self.ratio
        return None if self.goal is None or found is None else self.goal.times_better(found)

    def as_json(self) -> dict[str, Any]:
        """All of it, with what follows from it."""
        better = self.times_better
        found = asdict(self) | {"ratio": self.ratio, "goal_met": None if better is None else better >= 1}
        # JSON has no infinity.
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in found.items()
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Row":
        """What `as_json` made."""
        goal = Goal(**found["goal"]) if found["goal"] else None
        fields = {name: found[name] for name in cls.__dataclass_fields__ if name != "goal"}
        figure = math.inf if found["figure"] is None else found["figure"]
        return cls(**{**fields, "figure": figure}, goal=goal)


def circumstances() -> dict[str, Any]:
    """When and where it was measured, and the load of the machine, which is the measurement's own, too."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        check=False,
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
    ).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


# -- the table ---------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _bar(row: Row) -> Text:
    """From the goal, in the middle: to the right when the figure is better, to the left when it is worse."""
    better = row.times_better
    if better is None:
        return Text("")
    middle = BAR // 2
    steps = min(middle, round(middle * abs(math.log(better)) / math.log(BAR_RANGE)))
    if better < 1:
        steps = max(1, steps)
        return Text.assemble(" " * (middle - steps), ("█" * steps, "red"), "│")
    return Text.assemble(" " * middle, "│", ("█" * steps, "green"))


def table_of(rows: Sequence[Row], title: str, caption: str) -> Table:
    """A row a figure; green where a goal is met."""
    table = Table(title=title, caption=caption, expand=True, header_style="bold", row_styles=["", "on grey7"])
    table.add_column("what")
    table.add_column("worker", justify="right")
    table.add_column("unit")
    table.add_column("against")
    table.add_column("its figure", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("goal", justify="right", no_wrap=True)
    table.add_column("worse │ better", width=BAR + 1, no_wrap=True)
    last = rows[0].script if rows else ""
    for row in rows:
        if row.script != last:
            table.add_section()
            last = row.script
        met = row.times_better
        style = "" if met is None else "green" if met >= 1 else "red"
        figure, ratio = _number(row.figure), "" if row.ratio is None else f"{row.ratio:.2f}"
        of_figure = row.goal is not None and row.goal.of_figure
        what = Text(row.what)
        if row.note:
            what.append(f"\n{row.note}", "dim")
        table.add_row(
            what,
            Text(figure, style if of_figure else ""),
            row.unit,
            row.against,
            _number(row.reference),
            Text(ratio, "" if of_figure else style),
            "" if row.goal is None else f"{row.goal}{f' {row.unit}' if of_figure else ''}",
            _bar(row),
        )
    return table


def show(rows: Sequence[Row], title: str, caption: str = "") -> None:
    """Print the table."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table_of(rows, title, caption))


def draw(rows: Sequence[Row], title: str, caption: str, path: Path) -> None:
    """Write the table as an SVG, which loads no font from elsewhere."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print(table_of(rows, "", caption))
    console.save_svg(str(path), title=title, code_format=SVG_FORMAT)


# -- a script's own run ------------------------------------------------------------------------------------


def argument_parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The options that each script has; `quick` says what the small form is."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--rows", type=Path, metavar="FILE", help="write the rows to FILE; print no table")
    return parser


def report(rows: Iterable[Row], arguments: argparse.Namespace, script: str) -> None:
    """Print a script's rows, or write them for `bench.py`."""
    found = [replace(row, script=Path(script).stem) for row in rows]
    if arguments.rows is None:
        show(found, Path(script).stem, f"load of the machine {os.getloadavg()[0]:.1f}")
    else:
        arguments.rows.write_text(json.dumps([row.as_json() for row in found]), encoding="utf-8")
