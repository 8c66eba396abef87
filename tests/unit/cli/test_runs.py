"""The commands `logs`, `status` and `runs list`."""

import json

import pytest
from fakeredis import FakeRedis
from typer.testing import CliRunner

from shared.channels import job_key
from shared.statuses import JobStatus
from tests.unit.cli.command_line import RAY_JOB, CommandLine
from tests.unit.conftest import Clock
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


def listed(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["runs", "list", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def listed_jobs(*arguments: str) -> list[tuple[str, str]]:
    return [(run["job"], run["status"]) for run in json.loads(listed("--json", *arguments))]


@pytest.fixture
def several_runs(cli: CommandLine, clock: Clock) -> None:
    """Two that failed, three hours and one minute ago, one that succeeded and a live one."""
    cli.given_ended_run("old", JobStatus.FAILED, "long ago")
    clock.forward(3 * 60 * 60)
    cli.given_ended_run("done", JobStatus.SUCCEEDED)
    cli.given_ended_run("new", JobStatus.FAILED, "[red]no[/] " + "word " * 60 + "end")
    clock.forward(60)
    cli.given_run("live")
    cli.redis.zadd(heartbeats_key(), {f"{RUN_PREFIX}live": 1})


def test_runs_are_listed_live_ones_first(several_runs: None) -> None:
    assert listed_jobs() == [
        ("live", "RUNNING"),
        ("new", "FAILED"),
        ("done", "SUCCEEDED"),
        ("old", "FAILED"),
    ]


def test_runs_are_listed_by_status_and_time(several_runs: None) -> None:
    assert listed_jobs("--status", "FAILED", "--since", "2h") == [("new", "FAILED")]
    assert listed_jobs("--status", "failed") == [("new", "FAILED"), ("old", "FAILED")]
    assert listed_jobs("--status", "RUNNING") == [("live", "RUNNING")]


def test_an_ended_run_that_is_not_reported_is_listed_once(several_runs: None) -> None:
    # Given ended runs, whose heartbeat is there until the backend has their end

    # Then each is among the ended ones alone
    assert len(listed_jobs()) == len(set(listed_jobs())) == 4


def test_a_list_says_that_there_are_more(several_runs: None) -> None:
    done = CliRunner().invoke(app, ["runs", "list", "--limit", "2", "--json"])

    assert [run["job"] for run in json.loads(done.stdout)] == ["live", "new"]
    assert "more than 2" in done.stderr


def test_a_piped_list_folds_no_line(several_runs: None) -> None:
    # When the list goes to a program, from a narrow terminal
    done = CliRunner().invoke(app, ["runs", "list", "--status", "FAILED"], env={"COLUMNS": "40"})

    # Then each run is one line, with all of its error as text
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert "[red]no[/] word word" in lines[1]
    assert lines[1].rstrip().endswith("word end")


@pytest.mark.parametrize("since", ["2", "h", "2 h", "yesterday", "-1h"])
def test_a_wrong_time_says_how_to_write_it(several_runs: None, since: str) -> None:
    done = CliRunner().invoke(app, ["runs", "list", f"--since={since}"])

    assert done.exit_code == 1
    assert "for example 2h" in " ".join(done.stderr.split())


def test_status_knows_a_run_whose_keys_have_expired(several_runs: None, redis: FakeRedis) -> None:
    redis.delete(*redis.keys("synapse:jobs:{old}*"))

    done = CliRunner().invoke(app, ["status", "old", "--json"])

    assert json.loads(done.stdout)["error"] == "long ago"


@pytest.fixture
def run_with_steps(live_runs: Runs, redis: FakeRedis) -> None:
    """A run of job 42 that is at its third step, the second of which a worker of an older release began."""
    times = {"@deploy.initialize": "250", "@deploy.capacity_gate": "-2750"}
    times |= {"started": "1700000000", "@deploy.serve_run": "2750", "step": "deploy.serve_run"}
    redis.hset(job_key("42"), mapping=times)


def test_status_shows_the_steps_with_their_times(run_with_steps: None, redis: FakeRedis) -> None:
    # Given that the run has ended seven seconds after it began
    redis.hset(job_key("42"), mapping={"status": "SUCCEEDED", "updated": "1700000007"})

    # When it is shown to a program
    done = CliRunner().invoke(app, ["status", "42", "--json"])

    # Then each step has its time, as far as it is known
    assert json.loads(done.stdout)["steps"] == [
        {"name": "deploy.initialize", "began": "2023-11-14T22:13:20.250+00:00", "seconds": None},
        {"name": "deploy.capacity_gate", "began": None, "seconds": None},
        {"name": "deploy.serve_run", "began": "2023-11-14T22:13:22.750+00:00", "seconds": 4.25},
    ]


def test_status_shows_the_steps_to_people(run_with_steps: None) -> None:
    lines = CliRunner().invoke(app, ["status", "42"]).output.splitlines()
    assert [line.split()[-3:] for line in lines if "capacity_gate" in line] == [["an", "unknown", "time"]]


def test_status_lists_live_runs_as_json(live_runs: Runs, redis: FakeRedis) -> None:
    redis.zadd(heartbeats_key(), {f"{RUN_PREFIX}42": 1})

    done = CliRunner().invoke(app, ["status", "--json"])

    [run] = json.loads(done.stdout)
    assert (run["job"], run["status"], run["overall"], run["ended"]) == ("42", "PENDING", 0.0, None)


def test_an_empty_list_is_json_too(redis: FakeRedis) -> None:
    assert json.loads(listed("--json")) == []
    assert listed() == "no such runs\n"
