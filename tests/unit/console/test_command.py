"""The command `console`: which tokens and addresses it starts with."""

from typing import Any

import pytest
from fakeredis import FakeRedis
from typer.testing import CliRunner

from worker.cli import live_page
from worker.cli.main import app
from worker.console import server
from worker.console.sessions import MIN_TOKEN_CHARS

TOKEN = "a-token-of-some-length"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, redis: FakeRedis) -> list[tuple[Any, ...]]:
    """With what the page was served: address, port, proxies."""
    served: list[tuple[Any, ...]] = []
    monkeypatch.setattr(live_page, "connect", lambda _: redis)
    monkeypatch.setattr(server, "serve", lambda _, *arguments: served.append(arguments))
    return served


def console(*options: str, **environ: str) -> tuple[int, str]:
    """Exit code and output of the command, in one line."""
    done = CliRunner().invoke(app, ["console", *options], env={"WORKER_CONSOLE_TOKEN": "", **environ})
    return done.exit_code, " ".join(done.output.split())


def test_another_address_than_loopback_needs_a_token(served: list[tuple[Any, ...]]) -> None:
    assert console() == (0, "console on http://127.0.0.1:8365")

    code, output = console("--host", "0.0.0.0")

    assert (code, len(served)) == (1, 1)
    assert "WORKER_CONSOLE_TOKEN is needed export WORKER_CONSOLE_TOKEN=$(openssl rand -hex 24)" in output


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_token_that_is_too_short_is_rejected(served: list[tuple[Any, ...]], host: str) -> None:
    # Given a token that is one character too short
    token = "hushhush-hushhush"[: MIN_TOKEN_CHARS - 1]

    # When the page is to be served
    code, output = console("--host", host, WORKER_CONSOLE_TOKEN=token)

    # Then the error says how long it has to be and how to make one, and does not show it
    assert (code, served) == (1, [])
    assert "WORKER_CONSOLE_TOKEN is too short: it has fewer than 16 characters" in output
    assert "openssl rand -hex 24" in output
    assert token not in output
    assert console("--host", host, WORKER_CONSOLE_TOKEN=token + "x")[0] == 0


def test_trusted_proxies_are_named_as_uvicorn_names_them(served: list[tuple[Any, ...]]) -> None:
    console()
    console(FORWARDED_ALLOW_IPS="10.0.0.0/8")
    console("--forwarded-allow-ips", "10.1.2.3,10.1.2.4", FORWARDED_ALLOW_IPS="10.0.0.0/8")

    assert [trusted for *_, trusted in served] == ["127.0.0.1", "10.0.0.0/8", "10.1.2.3,10.1.2.4"]
