"""A run's progress on a terminal (bars above a scrolling log), or as plain lines in a file or a pipe."""

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
from worker.cli.console import terminal_line

TICK_SECONDS: Final = 5.0
"""Interval at which a step without progress is shown again, when there is no terminal."""


class Ticker:
    """Calls `on_tick` with the elapsed seconds at each interval, until the block ends or `stop` is called."""

    def __init__(self, on_tick: Callable[[float], None], interval_seconds: float = TICK_SECONDS) -> None:
        self._on_tick, self._interval_seconds = on_tick, interval_seconds
        self._stopped = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def stop(self) -> None:
        """Make no further calls."""
        self._stopped.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            self._on_tick(time.monotonic() - self._started)


MAX_LOG_LINES: Final = 20
REFRESHES_PER_SECOND: Final = 10
PERCENT_PER_LINE: Final = 10.0
"""Without a terminal, a step is shown again after so much progress."""


class RunView(Protocol):
    """Shows a run. Threads may share it."""

    def log(self, line: Text) -> None:
        """Show a line of the log."""

    def progress(self, step: str, percent: float) -> None:
        """Show how far a step is."""

    def metrics(self, step: str, values: str) -> None:
        """Show the metrics of a step."""

    def complete(self) -> None:
        """Show every step as complete."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveView:
    """Implements `RunView` on a terminal: bars above the last lines of the log. Both stay at the end."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("  {task.description:<20}"),
            BarColumn(bar_width=40),
            TextColumn("{task.percentage:>5.1f} %"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[metrics]}"),
            console=console,
        )
        self._bar_ids: dict[str, TaskID] = {}
        self._lines: deque[Text] = deque(maxlen=MAX_LOG_LINES)
        self._live = Live(self, console=console, refresh_per_second=REFRESHES_PER_SECOND)

    def log(self, line: Text) -> None:
        self._lines.append(line)

    def progress(self, step: str, percent: float) -> None:
        self._bars.update(self._bar(step), completed=percent)

    def metrics(self, step: str, values: str) -> None:
        self._bars.update(self._bar(step), metrics=values)

    def complete(self) -> None:
        for bar_id in self._bar_ids.values():
            self._bars.update(bar_id, completed=100)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._bars.get_renderable()
        visible_lines = max(options.max_height - len(self._bar_ids) - 1, 1)
        for line in list(self._lines)[-visible_lines:]:
            # One row for each line: wider lines are cut here, `synapse-worker logs` shows them whole.
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

    def _bar(self, step: str) -> TaskID:
        """The bar of a step. A new step completes the bars of the earlier ones."""
        if step not in self._bar_ids:
            for bar_id in self._bar_ids.values():
                self._bars.update(bar_id, completed=100)
                self._bars.stop_task(bar_id)
            self._bar_ids[step] = self._bars.add_task(step, total=100, metrics="")
        return self._bar_ids[step]


class PlainView:
    """Implements `RunView` for a file or a pipe: the lines of the log, and a few lines for the progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._steps: list[str] = []
        self._percent = self._printed_percent = 0.0
        self._printed_at = 0.0
        self._ticker = Ticker(self._print_if_stalled, interval_seconds=1.0)

    def log(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)

    def progress(self, step: str, percent: float) -> None:
        with self._lock:
            if step not in self._steps:
                self.complete()
                self._steps.append(step)
                self._print_progress(percent)
            elif step == self._steps[-1]:
                self._percent = percent
                if percent >= self._printed_percent + PERCENT_PER_LINE:
                    self._print_progress(percent)

    def metrics(self, step: str, values: str) -> None:
        """Not shown: metrics change too often for a file."""

    def complete(self) -> None:
        with self._lock:
            if self._steps and self._printed_percent < 100:
                self._print_progress(100)

    def __enter__(self) -> Self:
        self._ticker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticker.__exit__()

    def _print_if_stalled(self, elapsed_seconds: float) -> None:
        """Print the current step again when nothing was printed for a while."""
        with self._lock:
            silent_seconds = time.monotonic() - self._printed_at
            if self._steps and self._printed_percent < 100 and silent_seconds >= TICK_SECONDS:
                self._print_progress(self._percent, f" after {elapsed_seconds:.0f} s")

    def _print_progress(self, percent: float, suffix: str = "") -> None:
        self._percent = self._printed_percent = percent
        self._printed_at = time.monotonic()
        self._console.print(Text(f"{self._steps[-1]} {percent:.0f} %{suffix}"), soft_wrap=True)


LOG_DRAIN_SECONDS: Final = 3.0
"""How long to wait for the end of the log after the run's end: relayed logs may continue for hours."""

LEVEL_STYLES: Final = {"warning": "yellow", "error": "red"}


@dataclass
class WatchedRun:
    """What `watch_run` saw: how the run ended, and the seconds of each step."""

    status: JobStatus = JobStatus.PENDING
    error: str = ""
    seconds: float = 0.0
    seconds_by_step: dict[str, float] = field(default_factory=dict)

    @property
    def end(self) -> str:
        """The end in one line, as the run's log states it too."""
        return f"{self.status} {self.error}".rstrip()


class _StepTimer:
    """Measures steps: each lasts from its first event to the first event of the next step."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._step_started: dict[str, float] = {}

    def record_event(self, step: str) -> None:
        self._step_started.setdefault(step, time.monotonic())

    def seconds_by_step(self) -> dict[str, float]:
        times = [*self._step_started.values(), time.monotonic()]
        return {step: times[i + 1] - times[i] for i, step in enumerate(self._step_started)}


def watch_run(redis: Redis, job: str, console: Console, *, title: str = "") -> WatchedRun:
    """Show the run of `job` until it ends."""
    watched, timer = WatchedRun(), _StepTimer()
    view = LiveView(console) if console.is_terminal else PlainView(console)
    if title:
        console.print(f"[bold]{escape(title)}[/]")
    held_lines: list[LogLine] = []
    with view:
        log_thread = threading.Thread(target=_show_log, args=(redis, job, view, held_lines), daemon=True)
        log_thread.start()
        for event in follow_run(redis, job):
            _show_event(event, view, timer, watched)
        log_thread.join(LOG_DRAIN_SECONDS)
        for line in held_lines:
            if line.line != watched.end:
                view.log(styled_line(line.source, line.line, line.level))
    watched.seconds = time.monotonic() - timer.started
    watched.seconds_by_step = timer.seconds_by_step()
    return watched


def _show_log(redis: Redis, job: str, view: RunView, held_lines: list[LogLine]) -> None:
    """Show lines as they come, but hold those that look like the run's end: `watch_run` decides on them."""
    # `follow_run`, in the foreground, raises the same error, and that ends the command with a message.
    with contextlib.suppress(RedisError):
        for line in LogFollower(redis, job):
            if line.source == "run" and is_final_status(line.line.partition(" ")[0]):
                held_lines.append(line)
            else:
                view.log(styled_line(line.source, line.line, line.level))


def styled_line(source: str, line: str, level: str = "info") -> Text:
    """A line of the log with its source and its colours."""
    text = Text.from_ansi(terminal_line(line), style=LEVEL_STYLES.get(level, ""))
    return Text.assemble((f"{source} | ", "dim"), text)


def _show_event(event: RunEvent, view: RunView, timer: _StepTimer, watched: WatchedRun) -> None:
    content = event.content
    match event.kind:
        case "progress":
            timer.record_event(content["step"])
            view.progress(content["step"], content["percent"])
        case "metrics":
            values = ", ".join(f"{value:g} {name}" for name, value in content["metrics"].items())
            view.metrics(content["step"], values)
        case "message" if not content.get("logged", True):
            view.log(styled_line("run", content["content"], content["level"]))
        case "state":
            if content.get("waiting_for"):
                view.log(styled_line("run", f"Waiting for {content['waiting_for']}."))
            watched.status = JobStatus(content["status"])
            watched.error = content.get("error", "")
            if watched.status is JobStatus.SUCCEEDED:
                view.complete()
