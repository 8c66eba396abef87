"""Ordinary mistakes at the command line: one clear line and exit code 1, never a traceback."""

import threading
from pathlib import Path

import fakeredis
import pytest
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import ResponseError
from typer.testing import CliRunner

from shared.channels import job_key
from worker.cli.console import at, queue_url
from worker.cli.main import app
from worker.workflow.dead_letters import DeadLetters

NOBODY = "redis://127.0.0.1:9/0"


def mistaken(*arguments: str) -> str:
    """What a command says on its way out."""
    done = CliRunner().invoke(app, arguments, env={"REDIS_URL": NOBODY, "CELERY_BROKER_URL": ""})
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    assert done.stderr.count("error:") == 1
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:abc/0",
        "redis://user:private#word@127.0.0.1:6379/0",
        "redis://127.0.0.1:99999/0",
        "redis://redis..svc:6379/0",
        "redis://[::1/0",
        f"{NOBODY}?no_such_option=1",
    ],
)
@pytest.mark.parametrize("command", [("status",), ("stop", "1"), ("deploy", "1", "a@1", "--agent", "1")])
def test_an_address_that_cannot_be_one_is_refused_without_showing_it(
    url: str, command: tuple[str, ...]
) -> None:
    said = mistaken(*command, "--redis-url", url)

    assert said == "error: REDIS_URL is no usable address Look at its host, port, database and options."


@pytest.mark.parametrize(
    "url", ["amqp://h:abc//", "amqp://rabbit..svc//", "amqp://127.0.0.1:9//;amqp://h:abc//"]
)
def test_a_queues_address_that_cannot_be_one_is_refused(url: str) -> None:
    assert "error: CELERY_BROKER_URL is no usable address" in mistaken("stop", "1", "--broker-url", url)


@pytest.mark.parametrize("url", ["http://h", "redis", ""])
def test_another_scheme_is_refused_by_name(url: str) -> None:
    for command in (("status",), ("stop", "1")):
        assert "REDIS_URL must start with redis://" in mistaken(*command, "--redis-url", url)


def test_a_queue_on_a_socket_is_in_the_database_that_the_worker_reads() -> None:
    assert queue_url(None, "unix:///run/redis.sock?db=3") == "redis+socket:///run/redis.sock?virtual_host=3"


def test_a_redis_that_is_not_there_is_told_with_its_address() -> None:
    assert f"error: Redis at {NOBODY} does not answer (ConnectionError)" in mistaken("status")
    assert f"error: the message queue at {NOBODY} does not answer (OperationalError)" in mistaken("stop", "1")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:private@127.0.0.1:9/0", " at redis://***@127.0.0.1:9/0"),
        ("redis://127.0.0.1:9/0?password=private", " at redis://127.0.0.1:9/0?password=***"),
        ("redis://:1/private@127.0.0.1:9/0", ""),
        ("amqp://h:9//;amqp://user:private@h:9//", " at amqp://h:9//;amqp://***@h:9//"),
    ],
)
def test_an_address_that_does_not_answer_is_told_without_its_password(url: str, shown: str) -> None:
    assert at(url) == shown


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeServer:
    """A Redis in memory that every command connects to."""
    server = fakeredis.FakeServer()
    for module in ("following", "runs", "dead_letters"):
        monkeypatch.setattr(
            f"worker.cli.{module}.connect",
            lambda _url: fakeredis.FakeRedis(server=server, decode_responses=True),
        )
    return server


@pytest.mark.parametrize("command", [("watch", "5"), ("logs", "5", "--follow")])
@pytest.mark.parametrize("running", [True, False])
def test_a_redis_that_goes_away_while_a_run_is_followed_is_told(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], running: bool
) -> None:
    monkeypatch.setattr("shared.follower.MAX_UNAVAILABLE_SECONDS", 0.5)
    if running:
        redis = fakeredis.FakeRedis(server=server, decode_responses=True)
        redis.hset(job_key("5"), mapping={"status": "RUNNING"})
    timer = threading.Timer(0.5, lambda: setattr(server, "connected", False))
    timer.start()

    said = mistaken(*command)

    timer.join()
    assert said.startswith("error: Redis does not answer any more (ConnectionError)")


def test_a_redis_that_refuses_is_told_in_its_words(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakeredis.FakeRedis(server=server).set(job_key("5"), "no hash")

    assert mistaken("status", "5").startswith("error: Redis refuses: WRONGTYPE")


@pytest.mark.parametrize("id_", ["99999999999999999999-0", "1-18446744073709551616", "x", "1", "-1-1"])
@pytest.mark.parametrize("command", ["show", "drop", "replay"])
def test_an_id_that_no_dead_letter_can_have_is_unknown(
    server: fakeredis.FakeServer, command: str, id_: str
) -> None:
    assert f"error: there is no dead letter {id_}" in mistaken("dead-letters", command, "--", id_)


@pytest.mark.parametrize("error", [LostConnectionError("gone"), ResponseError("OOM"), None])
def test_a_replay_that_was_not_sent_does_not_open_its_job(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    # Given a job that is FAILED because of a dead letter
    letters = DeadLetters(fakeredis.FakeRedis(server=server, decode_responses=True))
    letters.add("deploy", [[], {"job": "5", "plugin": "a@1", "agent": 1}, {}], "unknown plugin")
    letters.start_rejecting("5")
    letters.mark_rejected("5")
    (letter,) = letters.all()

    # When its replay does not reach the queue
    if error is not None:
        monkeypatch.setattr("shared.Publisher.publish", lambda *_: (_ for _ in ()).throw(error))
    broker = NOBODY if error else "amqp://h:abc//"
    mistaken("dead-letters", "replay", letter.id, "--broker-url", broker)

    # Then the job's next message does not open it, and the letter is still there
    assert not letters.is_replayed("5")
    assert letters.get(letter.id) is not None


def written(folder: Path, config: str) -> str:
    (folder / "a@1").mkdir()
    (folder / "a@1" / "config.yaml").write_text(config)
    return str(folder)


def test_an_action_whose_name_is_markup_or_half_a_character_is_listed(tmp_path: Path) -> None:
    config = 'code: a\nversion: "1"\nactions: {"[/x]": {entrypoint: p.B}, "y\\ud800": {entrypoint: p.B}}'
    folder = written(tmp_path, config)

    done = CliRunner().invoke(app, ["plugin", "list", "--plugins-dir", folder])

    assert done.exit_code == 0, done.exception
    assert "[/x], y" in done.stdout


def test_a_config_that_yaml_cannot_make_is_a_problem_of_its_release(tmp_path: Path) -> None:
    folder = written(tmp_path, "code: !!int ''")

    done = CliRunner().invoke(app, ["plugin", "list", "--plugins-dir", folder])

    assert done.exit_code == 0, done.exception
    assert "not valid YAML" in " ".join(done.stdout.split())
    assert "not valid YAML" in mistaken("plugin", "check", "a@1", "--plugins-dir", folder)


@pytest.mark.parametrize("source", ["(" * 3000, "x = " + "-" * 100_000 + "1", "x = " + "a." * 50_000 + "b"])
def test_code_that_python_cannot_read_is_a_problem_of_its_release(tmp_path: Path, source: str) -> None:
    folder = written(tmp_path, 'code: a\nversion: "1"\nactions: {x: {entrypoint: p.B}}')
    (tmp_path / "a@1" / "p.py").write_text(source)

    assert "error: a@1: p.py" in mistaken("plugin", "check", "a@1", "--plugins-dir", folder)


def test_the_doctor_says_which_address_cannot_be_one(tmp_path: Path) -> None:
    environ = {
        "SYNAPSE_HOST": "http://127.0.0.1:9",
        "SYNAPSE_ACCESS_TOKEN": "token",
        "PLUGINS_DIR": str(tmp_path),
        "REDIS_URL": "redis://redis..svc/0",
        "CELERY_BROKER_URL": "amqp://rabbit..svc//",
        "SYNAPSE_AGENT_URL": "",
        "RAY_ADDRESS": "",
    }

    done = CliRunner().invoke(app, ["doctor"], env=environ)

    assert done.exit_code == 1, done.exception
    said = " ".join(done.stdout.split())
    assert "✗ redis: no usable address (see REDIS_URL)" in said
    assert "✗ queue: no usable address (see CELERY_BROKER_URL)" in said
    assert "✗ backend: 503 Service Unavailable" in said
