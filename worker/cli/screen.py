"""Bars above a scrolling log on a terminal; the log alone where there is none."""

import threading
import time
from collections import deque
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from worker.cli.heartbeat import EVERY_SECONDS, Heartbeat

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
