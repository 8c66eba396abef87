"""A run's progress in the terminal: bars above a scrolling log, or plain lines when nobody is watching."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

from redis import Redis, RedisError
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from shared.follower import LogFollower, LogLine, RunEvent, follow_run
from shared.statuses import JobStatus, is_final_status
from worker.cli.console import shown

EVERY_SECONDS: Final = 5.0


class Heartbeat:
    """Calls `beat` now and then with the seconds so far, until the `with` block ends or `stop` is called."""

    def __init__(self, beat: Callable[[float], None], every: float = EVERY_SECONDS) -> None:
        self._beat, self._every = beat, every
        self._over = threading.Event()
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def stop(self) -> None:
        """It is done."""
        self._over.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every):
            self._beat(time.monotonic() - self._begun)


MOST_LINES: Final = 20
REFRESHES_A_SECOND: Final = 10
PERCENT_A_LINE: Final = 10.0
"""Where there are no bars."""


class View(Protocol):
    """What shows a run. Threads may share it."""

    def log(self, line: Text) -> None:
        """A line of the log."""

    def progress(self, step: str, percent: float) -> None:
        """How far a step is."""

    def metrics(self, step: str, values: str) -> None:
        """What a step counts."""

    def complete(self) -> None:
        """Everything is done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Screen:
    """The bars stand still, the end of the log scrolls below them. When it closes, both stay."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("  {task.description:<20}"),
            BarColumn(bar_width=40),
            TextColumn("{task.percentage:>5.1f} %"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )
        self._rows: dict[str, TaskID] = {}
        self._lines: deque[Text] = deque(maxlen=MOST_LINES)
        self._live = Live(self, console=console, refresh_per_second=REFRESHES_A_SECOND)

    def log(self, line: Text) -> None:
        self._lines.append(line)

    def progress(self, step: str, percent: float) -> None:
        self._bars.update(self._row(step), completed=percent)

    def metrics(self, step: str, values: str) -> None:
        self._bars.update(self._row(step), note=values)

    def complete(self) -> None:
        for row in self._rows.values():
            self._bars.update(row, completed=100)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._bars.get_renderable()
        room = max(options.max_height - len(self._rows) - 1, 1)
        for line in list(self._lines)[-room:]:
            # One row a line: what is wider than the terminal is cut, `synapse-worker logs` has it whole.
            row = line.copy()
            row.truncate(options.max_width, overflow="ellipsis")
            yield row

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _row(self, step: str) -> TaskID:
        """The bar of a step; when a later step begins, the earlier ones are done."""
        if step not in self._rows:
            for row in self._rows.values():
                self._bars.update(row, completed=100)
                self._bars.stop_task(row)
            self._rows[step] = self._bars.add_task(step, total=100, note="")
        return self._rows[step]


class PlainLines:
    """For a file, a pipe or a CI's log: lines, and of the progress what a reader needs to see it go on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._begun: list[str] = []
        self._percent = self._written = 0.0
        self._written_at = 0.0
        self._heartbeat = Heartbeat(self._go_on, every=1.0)

    def log(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)

    def progress(self, step: str, percent: float) -> None:
        with self._lock:
            if step not in self._begun:
                self.complete()
                self._begun.append(step)
                self._write(percent)
            elif step == self._begun[-1]:
                self._percent = percent
                if percent >= self._written + PERCENT_A_LINE:
                    self._write(percent)

    def metrics(self, step: str, values: str) -> None:
        """Too many for a file."""

    def complete(self) -> None:
        with self._lock:
            if self._begun and self._written < 100:
                self._write(100)

    def __enter__(self) -> Self:
        self._heartbeat.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeat.__exit__()

    def _go_on(self, seconds: float) -> None:
        """The step again that says nothing new for long."""
        with self._lock:
            silent = time.monotonic() - self._written_at
            if self._begun and self._written < 100 and silent >= EVERY_SECONDS:
                self._write(self._percent, f" after {seconds:.0f} s")

    def _write(self, percent: float, when: str = "") -> None:
        self._percent = self._written = percent
        self._written_at = time.monotonic()
        self._console.print(Text(f"{self._begun[-1]} {percent:.0f} %{when}"), soft_wrap=True)


LAST_LINES_SECONDS: Final = 3.0
"""How long to wait for the end of the log after the run's end: other logs may go on for hours."""

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
            if line.source == "run" and is_final_status(line.line.partition(" ")[0]):
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
