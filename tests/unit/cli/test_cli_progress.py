"""What somebody sees of the progress who has no terminal, or a narrow one."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from shared.statuses import JobStatus
from worker.cli.demo import DemoRun, _results_table, _seconds_by_step
from worker.cli.progress import PlainView, Ticker, WatchedRun


class Paper:
    """Plain lines on a console without a terminal, and a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._text = io.StringIO()
        self.now = 0.0
        monkeypatch.setattr("worker.cli.progress.time.monotonic", lambda: self.now)
        self.view = PlainView(Console(file=self._text, width=80))

    @property
    def lines(self) -> list[str]:
        return self._text.getvalue().splitlines()


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    return Paper(monkeypatch)


def test_a_line_comes_at_each_further_ten_percent_and_at_a_steps_end(paper: Paper) -> None:
    # When a step goes in small paces, then another one begins and everything succeeds
    for percent in (0.0, 4.0, 9.9, 11.0, 15.0, 21.0, 22.0):
        paper.view.progress("annotate", percent)
    paper.view.progress("finalize", 0)
    paper.view.progress("annotate", 90)
    paper.view.complete()

    # Then there is a line a ten percent, both ends included, and none for a step that is over
    assert paper.lines == [
        "annotate 0 %",
        "annotate 11 %",
        "annotate 21 %",
        "annotate 100 %",
        "finalize 0 %",
        "finalize 100 %",
    ]


def test_a_step_that_says_nothing_is_shown_to_go_on(paper: Paper) -> None:
    paper.view.progress("prepare", 30)
    for paper.now in (4.0, 5.0, 6.0, 10.0):
        paper.view._print_if_stalled(paper.now)

    assert paper.lines == ["prepare 30 %", "prepare 30 % after 5 s", "prepare 30 % after 10 s"]


def test_a_heartbeat_beats_until_it_is_stopped(eventually: Callable[[Callable[[], object]], None]) -> None:
    beats: list[float] = []

    with Ticker(beats.append, interval_seconds=0.01) as ticker:
        eventually(lambda: len(beats) > 2)
        ticker.stop()

    assert beats == sorted(beats)


def test_the_demos_table_has_room_on_eighty_columns() -> None:
    # Given a run with many steps
    steps = dict.fromkeys(("initialize", "prepare", "fetch_tasks", "annotate_task_data", "finalize"), 1.25)
    watched = WatchedRun(JobStatus.SUCCEEDED, seconds=123.4, seconds_by_step=steps)
    run = DemoRun("inference", watched, {"total_tasks": 899}, 0.9711)

    # When it is shown
    text = io.StringIO()
    console = Console(file=text, width=80)
    console.print(_results_table([run]), _seconds_by_step(run))

    # Then the row and each of its steps are a line
    lines = [line.replace("│", " ").split() for line in text.getvalue().splitlines()]
    assert ["inference", "SUCCEEDED", "899", "0", "97.1%", "123.4"] in lines
    assert ["annotate_task_data", "1.2", "s"] in lines
