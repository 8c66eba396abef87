"""The progress of a run on a terminal, and as plain lines without one."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakeredis import FakeRedis
from rich.console import Console
from rich.text import Text

from shared.channels import job_key
from shared.statuses import JobStatus
from tests.unit.cli.command_line import RAY_JOB
from worker.cli.progress import LiveView, PlainView, Ticker, watch_run
from worker.runs.model import End
from worker.runs.runs import Runs


class PlainOutput:
    """A plain view on a console without a terminal, and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._text = io.StringIO()
        self.now = 0.0
        monkeypatch.setattr("worker.cli.progress.time.monotonic", lambda: self.now)
        self.view = PlainView(Console(file=self._text, width=80))

    @property
    def lines(self) -> list[str]:
        return self._text.getvalue().splitlines()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> PlainOutput:
    return PlainOutput(monkeypatch)


def test_plain_lines_come_every_ten_percent_and_at_the_end(plain: PlainOutput) -> None:
    # When a step progresses in small amounts, then another one starts and the run succeeds
    for percent in (0.0, 4.0, 9.9, 11.0, 15.0, 21.0, 22.0):
        plain.view.progress("annotate", percent)
    plain.view.progress("finalize", 0)
    plain.view.progress("annotate", 90)
    plain.view.complete()

    # Then there is a line every ten percent, from 0 to 100, and none for a step that has ended
    assert plain.lines == [
        "annotate 0 %",
        "annotate 11 %",
        "annotate 21 %",
        "annotate 100 %",
        "finalize 0 %",
        "finalize 100 %",
    ]


def test_stalled_step_is_printed_again(plain: PlainOutput) -> None:
    plain.view.progress("prepare", 30)
    for plain.now in (4.0, 5.0, 6.0, 10.0):
        plain.view._print_if_stalled(plain.now)

    assert plain.lines == ["prepare 30 %", "prepare 30 % after 5 s", "prepare 30 % after 10 s"]


def test_ticker_ticks_until_it_is_stopped(eventually: Callable[[Callable[[], object]], None]) -> None:
    beats: list[float] = []

    with Ticker(beats.append, interval_seconds=0.01) as ticker:
        eventually(lambda: len(beats) > 2)
        ticker.stop()

    assert beats == sorted(beats)


def test_watch_without_a_terminal_prints_plain_lines(ended_run_with_log: Runs, redis: FakeRedis) -> None:
    output = io.StringIO()

    watched = watch_run(redis, "42", Console(file=output, width=40))

    assert watched.end == "SUCCEEDED"
    assert output.getvalue().splitlines() == ["run | hello", f"{RAY_JOB} | 빨강", f"{RAY_JOB} | 20 %"]


def test_watch_shows_a_message_that_looks_like_the_end(live_runs: Runs, redis: FakeRedis) -> None:
    live_runs.events.message("42", "FAILED images are left out")
    live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    output = io.StringIO()

    watch_run(redis, "42", Console(file=output, width=40))

    assert output.getvalue().splitlines() == ["run | FAILED images are left out"]


def test_watch_on_a_terminal_shows_bars_above_the_log(live_runs: Runs, redis: FakeRedis) -> None:
    # Given a terminal of ten rows, two steps, and more lines than fit
    output = io.StringIO()
    console = Console(file=output, width=60, height=10, force_terminal=True, color_system=None)
    with LiveView(console) as view:
        view.progress("deploy", 40)
        view.progress("register", 10)
        view.metrics("register", "3 success")
        for number in range(30):
            view.log(Text(f"run | line {number} " + "x" * 100))

    # Then the bars are above the last lines, each of which has one row
    rows = output.getvalue().rpartition("deploy")[2].splitlines()
    assert "100.0 %" in rows[0]
    assert "3 success" in rows[1]
    assert [row.split()[3] for row in rows[2:] if "line" in row] == [str(number) for number in range(23, 30)]
    assert all(len(row) <= 60 for row in rows[2:])


def test_watch_shows_for_what_a_run_waits(
    live_runs: Runs, redis: FakeRedis, eventually: Callable[[Callable[[], object]], None]
) -> None:
    # Given a run that waits since before it was watched, and says so again
    redis.hset(job_key("42"), "waiting_for", "pre-processor digits@1.0.0")
    output = io.StringIO()

    def say_so_and_end() -> None:
        eventually(lambda: "Waiting" in output.getvalue())
        live_runs.events.message("42", "Waiting for it (job 7).", in_log=False)
        live_runs.events.message("42", "a line of the log")
        live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))

    with ThreadPoolExecutor() as threads:
        worker = threads.submit(say_so_and_end)
        watch_run(redis, "42", Console(file=output, width=60))
        worker.result()

    # Then each is shown once
    assert sorted(output.getvalue().splitlines()) == [
        "run | Waiting for it (job 7).",
        "run | Waiting for pre-processor digits@1.0.0.",
        "run | a line of the log",
    ]
