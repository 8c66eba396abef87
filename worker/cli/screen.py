"""Bars above a scrolling log on a terminal; the log alone where there is none."""

from collections import deque
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

MOST_LINES: Final = 20
REFRESHES_A_SECOND: Final = 10


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
    """For a file, a pipe or a CI's log: lines, and of the progress when a step begins."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps: set[str] = set()

    def log(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)

    def progress(self, step: str, percent: float) -> None:
        if step not in self._steps:
            self._steps.add(step)
            self._console.print(Text(f"{step} {percent:g} %"))

    def metrics(self, step: str, values: str) -> None:
        """Too many for a file."""

    def complete(self) -> None:
        """The status that follows says so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
