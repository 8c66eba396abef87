"""A run in the terminal: a bar a step above its scrolling log; plain lines when nobody is watching."""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Final

from redis import Redis, RedisError
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from shared.follower import LogFollower, LogLine, RunEvent, follow_run
from shared.statuses import JobStatus
from worker.cli.screen import PlainLines, Screen, View
from worker.cli.terminal_text import shown

LAST_LINES_SECONDS: Final = 3.0
"""How long to wait for the end of the log after the run's end: other logs may go on for hours."""

FINAL: Final = frozenset(status.value for status in JobStatus if status.is_final)
LEVEL_STYLES: Final = {"warning": "yellow", "error": "red"}


@dataclass
class Followed:
    """What was seen of a run: its end, its last counts, and seconds by step."""

    status: JobStatus = JobStatus.PENDING
    error: str = ""
    seconds: float = 0.0
    seconds_by_step: dict[str, float] = field(default_factory=dict)

    @property
    def end(self) -> str:
        """The end in one line, as it stands in the run's log too."""
        return f"{self.status} {self.error}".rstrip()


class _Timeline:
    """When each step was first heard of; a step lasts until the next begins."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._begun: dict[str, float] = {}

    def heard_of(self, step: str) -> None:
        self._begun.setdefault(step, time.monotonic())

    def seconds_by_step(self) -> dict[str, float]:
        times = [*self._begun.values(), time.monotonic()]
        return {step: times[i + 1] - times[i] for i, step in enumerate(self._begun)}


def watch(redis: Redis, job: str, console: Console, *, title: str = "") -> Followed:
    """Show the run of `job` until it ends."""
    followed, timeline = Followed(), _Timeline()
    view = Screen(console) if console.is_terminal else PlainLines(console)
    if title:
        console.print(f"[bold]{escape(title)}[/]")
    ends: list[LogLine] = []
    with view:
        log = threading.Thread(target=_show_log, args=(redis, job, view, ends), daemon=True)
        log.start()
        for event in follow_run(redis, job):
            _show(event, view, timeline, followed)
        log.join(LAST_LINES_SECONDS)
        for line in ends:
            if line.line != followed.end:
                view.log(text_of(line))
    followed.seconds = time.monotonic() - timeline.started
    followed.seconds_by_step = timeline.seconds_by_step()
    return followed


def _show_log(redis: Redis, job: str, view: View, ends: list[LogLine]) -> None:
    """Show lines as they come, but for what looks like the run's end, which whoever asked will say."""
    # A Redis that is away for long ends the watch in the foreground, with its message.
    with contextlib.suppress(RedisError):
        for line in LogFollower(redis, job):
            if line.source == "run" and line.line.partition(" ")[0] in FINAL:
                ends.append(line)
            else:
                view.log(text_of(line))


def text_of(line: LogLine) -> Text:
    """A line of the log in its colours."""
    text = Text.from_ansi(shown(line.line), style=LEVEL_STYLES.get(line.level, ""))
    return Text.assemble((f"{line.source} | ", "dim"), text)


def _show(event: RunEvent, view: View, timeline: _Timeline, followed: Followed) -> None:
    content = event.content
    match event.kind:
        case "progress":
            timeline.heard_of(content["step"])
            view.progress(content["step"], content["percent"])
        case "metrics":
            values = ", ".join(f"{value:g} {name}" for name, value in content["metrics"].items())
            view.metrics(content["step"], values)
        case "state":
            followed.status = JobStatus(content["status"])
            followed.error = content.get("error", "")
            if followed.status is JobStatus.SUCCEEDED:
                view.complete()
