"""The connection to Ray, without Ray: addresses, tokens, and calls with a timeout."""

import threading
from pathlib import Path

import pytest

from worker.platform import redact
from worker.plugins import (
    PluginHostUnavailableError,
)
from worker.plugins.ray_session import RaySession, auth_headers, call_with_timeout


def test_missing_address_says_what_to_set() -> None:
    with pytest.raises(PluginHostUnavailableError, match="set RAY_ADDRESS"):
        RaySession().connect(None)


@pytest.mark.parametrize("address", ["auto", "local", "ray", "host:"])
def test_malformed_address_is_rejected(address: str) -> None:
    with pytest.raises(PluginHostUnavailableError, match="host:port"):
        RaySession().connect(address)


def test_dashboard_header_has_the_clusters_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert auth_headers() == {}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert auth_headers() == {"Authorization": "Bearer abc"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "def")
    assert auth_headers() == {"Authorization": "Bearer def"}


def test_token_of_the_cluster_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "raytoken-55d1c7")

    auth_headers()

    assert redact("said raytoken-55d1c7") == "said ***"


def test_call_with_timeout_returns_the_result() -> None:
    assert call_with_timeout(10, lambda: "result") == "result"


def test_call_with_timeout_raises_what_the_call_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(10, lambda: 1 / 0)


def test_call_without_an_answer_is_a_timeout_error() -> None:
    never = threading.Event()

    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        call_with_timeout(0.01, never.wait)

    never.set()
