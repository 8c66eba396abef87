"""A run in the terminal: a bar a step, its messages above; plain lines when nobody is watching."""

import time
from dataclasses import dataclass, field

from redis import Redis
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from shared.follower import RunEvent, follow_run
from shared.statuses import JobStatus

LEVEL_STYLES = {"warning": "yellow", "error": "red"}


@dataclass
class Followed:
    """What was seen of a run: its end, its last counts, and seconds by step."""

    status: JobStatus = JobStatus.PENDING
    error: str = ""
    seconds: float = 0.0
    seconds_by_step: dict[str, float] = field(default_factory=dict)


class _Timeline:
    """When each step was first heard of; a step lasts until the next begins."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._begun: dict[str, float] = {}

    def heard_of(self, step: str) -> None:
        self._begun.setdefault(step, time.monotonic())

    def seconds_by_step(self) -> dict[str, float]:
        ends = [*list(self._begun.values())[1:], time.monotonic()]
        return {step: end - begun for (step, begun), end in zip(self._begun.items(), ends, strict=True)}


def watch(redis: Redis, job: str, console: Console, *, title: str = "") -> Followed:
    """Show the run of `job` until it ends."""
    followed = Followed()
    timeline = _Timeline()
    columns = (
        TextColumn("  {task.description:<20}"),
        BarColumn(bar_width=40),
        TextColumn("{task.percentage:>5.1f} %"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        rows: dict[str, TaskID] = {}
        if title:
            console.print(f"[bold]{escape(title)}[/]")
        for event in follow_run(redis, job):
            _show(event, console, bars, rows, timeline, followed)
    followed.seconds = time.monotonic() - timeline.started
    followed.seconds_by_step = timeline.seconds_by_step()
    return followed


def _show(
    event: RunEvent,
    console: Console,
    bars: Progress,
    rows: dict[str, TaskID],
    timeline: _Timeline,
    followed: Followed,
) -> None:
    content = event.content
    match event.kind:
        case "progress":
            timeline.heard_of(content["step"])
            row = _row(content["step"], bars, rows)
            bars.update(row, completed=content["percent"])
        case "metrics":
            row = _row(content["step"], bars, rows)
            bars.update(
                row, note=", ".join(f"{value:g} {name}" for name, value in content["metrics"].items())
            )
        case "message":
            style = LEVEL_STYLES.get(content["level"], "dim")
            console.print(f"  [{style}]{escape(content['content'])}[/]", highlight=False)
        case "state":
            followed.status = JobStatus(content["status"])
            followed.error = content.get("error", "")
            if followed.status is JobStatus.SUCCEEDED:
                for row in rows.values():
                    bars.update(row, completed=100)


def _row(step: str, bars: Progress, rows: dict[str, TaskID]) -> TaskID:
    """The bar of a step; when a later step begins, the earlier ones are done."""
    if step not in rows:
        for row in rows.values():
            bars.update(row, completed=100)
            bars.stop_task(row)
        rows[step] = bars.add_task(step, total=100, note="")
    return rows[step]
