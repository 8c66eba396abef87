"""The command `logs`."""

import pytest
from fakeredis import FakeRedis
from typer.testing import CliRunner

from shared.channels import job_key
from tests.unit.cli.command_line import RAY_JOB
from worker.cli.main import app
from worker.runs.heartbeat import RUN_PREFIX
from worker.runs.keys import heartbeats_key
from worker.runs.runs import Runs


@pytest.fixture(autouse=True)
def connected(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.cli.runs.connect", lambda _url: redis)


def logs(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["logs", "42", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_logs_shows_every_line_with_its_source(ended_run_with_log: Runs) -> None:
    assert logs() == (
        f"run | hello\n{RAY_JOB} | \x1b[31m빨강\x1b[0m\n{RAY_JOB} | 10 %\r20 %\nrun | SUCCEEDED\n"
    )


def test_logs_of_one_source_have_no_prefix(ended_run_with_log: Runs) -> None:
    assert logs("--source", RAY_JOB) == "\x1b[31m빨강\x1b[0m\n10 %\r20 %\n"


def test_logs_shows_the_requested_number_of_last_lines(ended_run_with_log: Runs) -> None:
    assert logs("--tail", "1") == "run | SUCCEEDED\n"
    assert logs("--tail", "0") == ""


def test_logs_shows_times_on_request(ended_run_with_log: Runs) -> None:
    assert logs("-t", "-n", "1").endswith("+00:00 run | SUCCEEDED\n")


def test_following_a_closed_log_ends(ended_run_with_log: Runs) -> None:
    assert logs("--follow") == logs()


def test_logs_of_an_unknown_job_fail() -> None:
    done = CliRunner().invoke(app, ["logs", "42"])

    assert done.exit_code == 1


def test_logs_of_a_run_without_lines_says_what_it_waits_for(live_runs: Runs, redis: FakeRedis) -> None:
    redis.hset(job_key("42"), "waiting_for", "pre-processor digits@1.0.0")
    done = CliRunner().invoke(app, ["logs", "42"])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "job 42 waits for pre-processor digits@1.0.0" in done.stderr


def test_status_says_what_a_run_waits_for(live_runs: Runs, redis: FakeRedis) -> None:
    redis.hset(job_key("42"), "waiting_for", "pre-processor digits@1.0.0")
    done = CliRunner().invoke(app, ["status", "42"])
    assert "waiting for" in done.output
    assert "pre-processor digits@1.0.0" in done.output


def test_status_shows_other_runs_beside_a_damaged_record(live_runs: Runs, redis: FakeRedis) -> None:
    # Given a live run whose record has lost most of its fields
    redis.hdel(job_key("42"), "total", "started", "error", "overall")
    redis.zadd(heartbeats_key(), {f"{RUN_PREFIX}42": 1})

    done = CliRunner().invoke(app, ["status"])

    assert done.exit_code == 0, done.output
    assert "42" in done.output
