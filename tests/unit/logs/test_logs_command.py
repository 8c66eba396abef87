"""`synapse-worker logs` and what `watch` shows, on a Redis in memory."""

import io

import pytest
from fakeredis import FakeRedis
from rich.console import Console
from typer.testing import CliRunner

from shared.statuses import JobStatus
from tests.unit.logs.relay_harness import LogOfJob
from worker.cli.console import terminal_line
from worker.cli.main import app
from worker.cli.progress import watch_run
from worker.runs.model import End
from worker.runs.runs import Runs

RAY = "raysubmit_1"


@pytest.fixture(autouse=True)
def connected(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.cli.runs.connect", lambda _url: redis)


@pytest.fixture
def told(live_runs: Runs, job_log: LogOfJob) -> Runs:
    """A run that has ended, with a log that was watched for it."""
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    live_runs.events.message("42", "hello")
    job_log.append(RAY, "1", 0, "\x1b[31m빨강\x1b[0m", "10 %\r20 %")
    job_log.close(RAY, "1")
    live_runs.set_progress(live_runs.store.load("42"), "deploy", 50)
    live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    return live_runs


def logs(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["logs", "42", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_logs_shows_every_line_with_its_source(told: Runs) -> None:
    assert logs() == (f"run | hello\n{RAY} | \x1b[31m빨강\x1b[0m\n{RAY} | 10 %\r20 %\nrun | SUCCEEDED\n")


def test_logs_of_one_source_is_its_text_alone(told: Runs) -> None:
    assert logs("--source", RAY) == "\x1b[31m빨강\x1b[0m\n10 %\r20 %\n"


def test_logs_shows_as_many_of_the_last_lines_as_wanted(told: Runs) -> None:
    assert logs("--tail", "1") == "run | SUCCEEDED\n"
    assert logs("--tail", "0") == ""


def test_logs_shows_times_where_wanted(told: Runs) -> None:
    assert logs("-t", "-n", "1").endswith("+00:00 run | SUCCEEDED\n")


def test_following_a_log_that_is_over_ends(told: Runs) -> None:
    assert logs("--follow") == logs()


def test_logs_of_an_unknown_job_says_so() -> None:
    done = CliRunner().invoke(app, ["logs", "42"])

    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        ("plain 한국어\tx", "plain 한국어\tx"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("10 %\r20 %\r", "20 %"),
        ("\x1b[2J\x1b[Hcleared\x1b]0;title\x07\x07", "cleared"),
        ("\x1bcreset\x9b2J", "reset2J"),
    ],
)
def test_terminal_gets_colours_and_nothing_else_of_a_program(printed: str, text: str) -> None:
    assert terminal_line(printed) == text


def test_watch_without_a_terminal_prints_plain_lines_and_leaves_the_end_to_its_caller(
    told: Runs, redis: FakeRedis
) -> None:
    output = io.StringIO()

    watched = watch_run(redis, "42", Console(file=output, width=40))

    assert watched.end == "SUCCEEDED"
    assert output.getvalue().splitlines() == ["run | hello", f"{RAY} | 빨강", f"{RAY} | 20 %"]


def test_watch_shows_a_message_that_only_looks_like_the_end(live_runs: Runs, redis: FakeRedis) -> None:
    live_runs.events.message("42", "FAILED images are left out")
    live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    output = io.StringIO()

    watch_run(redis, "42", Console(file=output, width=40))

    assert output.getvalue().splitlines() == ["run | FAILED images are left out"]


def test_watch_on_a_terminal_shows_bars_above_the_log(live_runs: Runs, redis: FakeRedis) -> None:
    from worker.cli.progress import LiveView, Text

    # Given a terminal of ten rows, two steps, and more lines than have room
    output = io.StringIO()
    console = Console(file=output, width=60, height=10, force_terminal=True, color_system=None)
    with LiveView(console) as view:
        view.progress("deploy", 40)
        view.progress("register", 10)
        view.metrics("register", "3 success")
        for number in range(30):
            view.log(Text(f"run | line {number} " + "x" * 100))

    # Then the bars stand above the last lines, each line on one row
    rows = output.getvalue().rpartition("deploy")[2].splitlines()
    assert "100.0 %" in rows[0]
    assert "3 success" in rows[1]
    assert [row.split()[3] for row in rows[2:] if "line" in row] == [str(number) for number in range(23, 30)]
    assert all(len(row) <= 60 for row in rows[2:])
