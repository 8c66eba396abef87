"""The connection to Ray, without Ray: addresses, tokens, failures that are remembered, new connections."""

import socket
import threading
from pathlib import Path

import pytest

from tests.harness.fake_ray_driver import VERSIONS, FakeRayDriver
from worker.platform import redact
from worker.plugins import (
    PluginHostUnavailableError,
    RayDriverError,
    RunEndedError,
    run_end,
    waits_for_run,
)
from worker.plugins.ray_driver import RayConnection, connection


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def driver() -> FakeRayDriver:
    return FakeRayDriver()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A head that listens; an entry is the error with which it does not."""
    errors: list[str] = []

    def connect(_address: tuple[str, int], _timeout: float) -> socket.socket:
        if errors:
            raise ConnectionRefusedError
        return socket.socket()

    monkeypatch.setattr(connection.socket, "create_connection", connect)
    return errors


def connected(driver: FakeRayDriver, address: str = "head:6379") -> RayConnection:
    made = RayConnection(address, driver)
    made.connect()
    return made


def test_missing_address_says_what_to_set() -> None:
    with pytest.raises(PluginHostUnavailableError, match="set RAY_ADDRESS"):
        RayConnection(None).connect()


@pytest.mark.parametrize("address", ["auto", "local", "ray", "host:", "ray://host", "http://host:1"])
def test_malformed_address_is_rejected(address: str) -> None:
    with pytest.raises(PluginHostUnavailableError, match="host:port"):
        RayConnection(address).connect()


@pytest.mark.parametrize("address", ["head:6379", "ray://head:10001"])
def test_both_forms_of_an_address_connect(head: list[str], driver: FakeRayDriver, address: str) -> None:
    made = connected(driver, address)

    assert (driver.calls, made.generation, made.versions) == (
        ["load_ray", "connect", "load_serve"],
        1,
        VERSIONS,
    )


def test_a_connection_that_lives_is_kept(head: list[str], driver: FakeRayDriver) -> None:
    made = connected(driver)

    made.connect()

    assert (driver.starts, made.generation) == (1, 1)


def test_a_failed_connect_is_remembered_for_a_while(
    head: list[str], driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a cluster that rejects its driver
    driver.answers["connect"] = RayDriverError("AuthenticationError", "AuthenticationError", "no")
    made = RayConnection("head:6379", driver)
    with pytest.raises(PluginHostUnavailableError, match="RAY_AUTH_MODE=token"):
        made.connect()

    # When others connect at once, then they hear the same, and nobody has tried
    with pytest.raises(PluginHostUnavailableError, match="RAY_AUTH_MODE=token"):
        made.connect()
    assert (driver.starts, driver.runs) == (1, False)

    # And after a while it is tried again
    monkeypatch.setattr(connection, "FAILURE_SECONDS", 0.0)
    driver.answers["connect"] = VERSIONS
    made.connect()
    assert (driver.starts, made.generation) == (2, 1)


def test_a_caller_whose_run_ends_leaves_the_attempt_to_others(
    head: list[str], driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an attempt to connect that hangs
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 0.02)
    answers = threading.Event()

    def connect(_address: str) -> dict[str, str]:
        assert answers.wait(10)
        return VERSIONS

    driver.answers["connect"] = connect
    made = RayConnection("head:6379", driver)

    # When the run of its first caller ends, then that caller waits no longer
    with waits_for_run(lambda: True), pytest.raises(RunEndedError):
        made.connect()

    # And the same attempt serves the next one
    threading.Timer(0.1, answers.set).start()
    made.connect()
    assert (driver.starts, made.generation) == (1, 1)


def test_a_head_that_is_gone_starts_no_process(head: list[str], driver: FakeRayDriver) -> None:
    head.append("refused")

    with pytest.raises(PluginHostUnavailableError, match=r"cannot be reached \(ConnectionRefusedError\)"):
        RayConnection("head:6379", driver).connect()

    assert driver.starts == 0


@pytest.mark.parametrize("answer", [False, RayDriverError("TimeoutError", "no answer within 10 s")])
def test_a_stale_connection_that_is_lost_is_made_anew(
    head: list[str], driver: FakeRayDriver, answer: object
) -> None:
    # Given a connection on which a call failed
    made = connected(driver)
    driver.answers["is_usable"] = answer
    made.mark_stale()

    # When it is used again, then there is a new one
    made.connect()

    assert (driver.starts, made.generation) == (2, 2)


def test_a_call_that_fails_makes_the_connection_stale(head: list[str], driver: FakeRayDriver) -> None:
    made = connected(driver)
    driver.answers["is_usable"] = RayDriverError("ConnectionError", "ConnectionError")
    with pytest.raises(RayDriverError):
        made.call(connection.operations.is_usable, timeout=1)
    driver.answers["is_usable"] = True

    made.connect()

    assert driver.calls[-1] == "is_usable"


def test_an_ended_process_is_started_again(head: list[str], driver: FakeRayDriver) -> None:
    made = connected(driver)
    driver.kill()

    made.connect()

    assert (driver.starts, made.generation) == (2, 2)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "head:6379",
            RayDriverError("NoRayNodeError", "NoRayNodeError"),
            "no node runs here; set ray://head:10001",
        ),
        (
            "ray://head:6379",
            RayDriverError("ConnectionError", "ConnectionError", "ray client connection timeout"),
            "is this the port of the head's Ray Client server",
        ),
        (
            "ray://head:10001",
            RayDriverError("ConnectionAbortedError", "ConnectionAbortedError", "Initialization failure"),
            "could not start a process",
        ),
        (
            "ray://head:10001",
            RayDriverError("RuntimeError", "RuntimeError", "Version mismatch: The cluster:\n    Ray: 2.9.0"),
            "Version mismatch: The cluster: Ray: 2.9.0$",
        ),
    ],
)
def test_error_says_in_one_line_what_to_do(
    head: list[str], driver: FakeRayDriver, address: str, error: Exception, message: str
) -> None:
    driver.answers["connect"] = error

    with pytest.raises(PluginHostUnavailableError, match=message) as caught:
        RayConnection(address, driver).connect()

    assert "\n" not in str(caught.value)


def test_many_threads_make_one_connection(head: list[str], driver: FakeRayDriver) -> None:
    made = RayConnection("head:6379", driver)
    threads = [threading.Thread(target=made.connect) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert (driver.starts, made.generation) == (1, 1)


@pytest.mark.parametrize("is_in_file", [False, True])
def test_token_of_the_cluster_is_masked(
    head: list[str],
    driver: FakeRayDriver,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_in_file: bool,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    token = f"raytoken-55d1c7-{is_in_file}"
    if is_in_file:
        (tmp_path / "token").write_text(f"{token}\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)

    connected(driver)

    assert redact(f"said {token}") == "said ***"
