"""Logs on a real wire, over both protocols: whole lines, errors, limits, connections that are given back."""

import gc
import itertools
import logging
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.unit.platform.stream_server import LogServer, Script, Wire, log_server
from worker.platform import (
    AgentClient,
    AuthenticationError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    MalformedResponseError,
    NotFoundError,
    ServerError,
    StreamError,
    StreamLimitExceededError,
    StreamLimits,
    ValidationError,
    WebSocketError,
)

TOKEN = "private-agent-token"
Eventually = Callable[[Callable[[], object]], None]

both = pytest.mark.parametrize("protocol", ["stream", "websocket"])


def client_of(server: LogServer, **more: Any) -> AgentClient:
    return AgentClient(server.url, TOKEN, **more)


def lines_of(script: Script, protocol: Any, **limits: int) -> list[str]:
    with log_server(script) as server, client_of(server, stream_limits=StreamLimits(**limits)) as client:
        return list(client.tail_job_logs("job-1", 5, protocol))


def failure_of(
    script: Script, protocol: Any, seconds: float = 5, **limits: int
) -> tuple[list[str], ClientError]:
    lines: list[str] = []
    with (
        log_server(script) as server,
        client_of(server, stream_limits=StreamLimits(**limits)) as client,
        pytest.raises(ClientError) as caught,
    ):
        lines.extend(client.tail_job_logs("job-1", seconds, protocol))
    text = "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
    assert TOKEN not in text
    assert "127.0.0.1" not in text
    return lines, caught.value


@both
def test_the_lines_come_until_the_agent_says_complete(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept().line("plain").line("").event(type="log", message="한국어 \x1b[32mgreen\x1b[0m")
        wire.event(message="b").event(type="ping").line('{"loss": 0.1}').event(type="complete")
        wire.wait_until_left()

    assert lines_of(script, protocol) == ["plain", "", "한국어 \x1b[32mgreen\x1b[0m", "b", '{"loss": 0.1}']


@both
def test_an_end_in_order_is_an_end(protocol: Any) -> None:
    assert lines_of(lambda wire: wire.accept().line("a").piece("last").finish(), protocol) == ["a", "last"]
    assert lines_of(lambda wire: wire.accept().finish(), protocol) == []


def test_chunks_may_end_anywhere() -> None:
    def script(wire: Wire) -> None:
        wire.accept()
        for byte in '가나\n다라\ndata: {"message": "마"}\n\n'.encode():
            wire.piece(bytes([byte]))
        wire.complete()

    assert lines_of(script, "stream") == ["가나", "다라", "마"]


def test_frames_may_end_anywhere() -> None:
    def script(wire: Wire) -> None:
        wire.accept().piece("Ray's own line\n").piece("par").piece("ti").piece("al\nnext\n").complete()

    assert lines_of(script, "websocket") == ["Ray's own line", "partial", "next"]


@both
def test_no_log_level_shows_the_token(protocol: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    assert lines_of(lambda wire: wire.accept().line("a").complete(), protocol) == ["a"]

    assert TOKEN not in caplog.text


@both
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ValidationError),
        (401, AuthenticationError),
        (404, NotFoundError),
        (408, ClientTimeoutError),
        (500, ServerError),
        (503, ServerError),
    ],
)
def test_a_rejection_says_what_the_agent_says(protocol: Any, status: int, kind: type[ClientError]) -> None:
    lines, error = failure_of(lambda wire: wire.reject(status, b'{"detail": "no: token=s3cret1"}'), protocol)

    assert (lines, type(error), error.status, error.detail) == ([], kind, status, "no: token=***")


@both
def test_redirects_are_not_followed(protocol: Any) -> None:
    with log_server(lambda wire: wire.accept().complete()) as other:
        _, error = failure_of(
            lambda wire: wire.reject(307, Location=other.url + "/jobs/job-1/logs/"), protocol
        )

    assert error.status == 307
    assert other.paths == []


@both
def test_nobody_listens(protocol: Any) -> None:
    with log_server(lambda wire: None) as server:
        pass
    with client_of(server) as client, pytest.raises(ClientConnectionError) as caught:
        list(client.tail_job_logs("a", 5, protocol))

    assert caught.value.status == 503
    assert "nobody listens" in str(caught.value)


@both
def test_an_agent_that_is_silent_is_a_timeout(protocol: Any) -> None:
    assert failure_of(lambda wire: wire.wait_until_left(), protocol, 0.1)[1].status == 408

    lines, error = failure_of(lambda wire: wire.accept().line("a").wait_until_left(), protocol, 0.3)

    assert lines == ["a"]
    assert type(error) is ClientTimeoutError


@both
def test_an_agent_that_drips_its_answer_is_a_timeout(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX-Drip: " + b"x" * 1000:
            wire._write(bytes([byte]))
            time.sleep(0.02)  # so slowly that it never ends in time

    before = time.monotonic()
    assert failure_of(script, protocol, 0.3)[1].status == 408
    assert time.monotonic() - before < 3


@both
def test_a_lost_connection_is_no_end(protocol: Any) -> None:
    lines, error = failure_of(lambda wire: wire.accept().line("a").line("b") and None, protocol)

    assert lines == ["a", "b"]
    assert type(error) is ClientConnectionError


@both
def test_half_a_line_before_a_loss_is_not_taken_for_one(protocol: Any) -> None:
    lines, _ = failure_of(lambda wire: wire.accept().piece("a\n").piece("hal") and None, protocol)

    assert lines == ["a"]


@both
def test_an_error_of_the_agent_is_raised_without_its_secrets(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept().line("a").event(
            type="error", message=f"at http://agent:1/x with {TOKEN}"
        ).wait_until_left()

    lines, error = failure_of(script, protocol)

    assert (lines, error.status, str(error)) == (["a"], 500, "at <url> with ***")
    assert type(error) is StreamError


@pytest.mark.parametrize(
    ("code", "kind"), [(1001, ClientConnectionError), (1012, ClientConnectionError), (1011, WebSocketError)]
)
def test_what_the_code_of_a_closed_websocket_means(code: int, kind: type[ClientError]) -> None:
    lines, error = failure_of(lambda wire: wire.accept().line("a").finish(code, "why?a=b"), "websocket")

    assert (lines, type(error)) == (["a"], kind)


def test_an_agent_without_websockets_there_says_so() -> None:
    _, error = failure_of(lambda wire: wire.reject(200, b"all of the log"), "websocket")

    assert (type(error), error.status) == (WebSocketError, 500)


@pytest.mark.parametrize(
    "script",
    [
        lambda wire: wire.accept("text/html").piece("<html>").finish(),
        lambda wire: wire.reject(200, b"", **{"Content-Encoding": "gzip"}),
    ],
)
def test_what_is_no_log_is_malformed(script: Script) -> None:
    assert type(failure_of(script, "stream")[1]) is MalformedResponseError


@both
def test_the_lines_within_the_limits_come_before_the_error(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept()
        while True:
            wire.line("x" * 10)

    lines, error = failure_of(script, protocol, max_lines=2000)

    assert len(lines) == 2000
    assert isinstance(error, StreamLimitExceededError)
    assert error.status == 429
    # Over the websocket there are no line ends to count.
    assert 90 <= len(failure_of(script, protocol, max_bytes=1000)[0]) <= 100


def test_messages_have_a_limit_of_their_own() -> None:
    lines, error = failure_of(
        lambda wire: [wire.accept(), *map(wire.line, "abcdef")], "websocket", max_messages=4
    )

    assert lines == ["a", "b", "c", "d"]
    assert isinstance(error, StreamLimitExceededError)


def test_a_message_above_the_whole_limit_is_not_accepted() -> None:
    _, error = failure_of(lambda wire: wire.accept().piece("x" * 2000), "websocket", max_bytes=1000)

    assert isinstance(error, StreamLimitExceededError)


@both
def test_a_long_line_is_cut_and_the_next_one_is_whole(protocol: Any) -> None:
    lines = lines_of(lambda wire: wire.accept().line("가" * 100_000).line("next").complete(), protocol)

    assert lines[0].endswith("가… [cut: 300000 bytes]")
    assert len(lines[0].encode()) <= 10_240
    assert lines[1:] == ["next"]


@both
def test_memory_stays_flat_however_long_a_line_grows(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept().piece("first\n")
        for _ in range(1000):
            wire.piece("x" * 50_000)

    tracemalloc.start()
    try:
        lines, error = failure_of(script, protocol, 20, max_bytes=40_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert lines == ["first"]
    assert isinstance(error, StreamLimitExceededError)
    assert peak < 8_000_000


@both
def test_a_slow_reader_holds_the_agent_up(protocol: Any, eventually: Eventually) -> None:
    sent = itertools.count()
    total = 0

    def script(wire: Wire) -> None:
        nonlocal total
        wire.accept()
        for total in sent:  # noqa: B007 - read by the test
            wire.line("x" * 1000)

    def still() -> bool:
        before = total
        threading.Event().wait(0.2)
        return before == total > 0

    with log_server(script) as server, client_of(server) as client:
        log = client.tail_job_logs("job-1", 1, protocol)
        next(log)
        eventually(still)
        # A thousand lines wait here, the rest is the kernel's and small.
        assert 500 < total < 12_000
        # However long it takes, silence is counted only while somebody waits.
        threading.Event().wait(1.1)
        assert len(list(itertools.islice(log, 3000))) == 3000


@both
def test_whoever_leaves_early_hangs_up(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept().line("a").wait_until_left()

    with log_server(script) as server, client_of(server) as client:
        for line in client.tail_job_logs("job-1", 30, protocol):
            assert line == "a"
            break
        assert server.one_has_left()
        log = client.tail_job_logs("job-1", 30, protocol)
        next(log)
        log.close()
        assert server.one_has_left()


@both
@pytest.mark.parametrize("after", ["opening", "the first line"])
def test_closing_the_client_wakes_whoever_waits(protocol: Any, after: str, eventually: Eventually) -> None:
    def script(wire: Wire) -> None:
        if after != "opening":
            wire.accept().line("a")
        wire.wait_until_left()

    outcome: list[object] = []

    def follow() -> None:
        try:
            outcome.extend(client.tail_job_logs("job-1", 60, protocol))
        except ClientError as error:
            outcome.append(error)

    with log_server(script) as server:
        client = client_of(server)
        threads = [threading.Thread(target=follow) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(server.paths) == 3 and len(outcome) == (0 if after == "opening" else 3))
        client.close()
        for thread in threads:
            thread.join(5)

    errors = [each for each in outcome if each != "a"]
    assert [type(each) for each in errors] == [StreamError] * 3
    with pytest.raises(StreamError, match="closed on this side"):
        client.tail_job_logs("job-1", 60, protocol)


@both
def test_a_forgotten_client_closes_its_logs(protocol: Any, eventually: Eventually) -> None:
    def script(wire: Wire) -> None:
        wire.accept().line("a").wait_until_left()

    with log_server(script) as server:
        client = client_of(server)
        log = client.tail_job_logs("job-1", 60, protocol)
        next(log)
        gone = weakref.ref(client)
        # A log that is being read keeps its client.
        del client
        gc.collect()
        assert gone() is not None
        assert not server.one_has_left(0.1)

        cycle: list[object] = [log]
        cycle.append(cycle)
        del log, cycle
        gc.collect()

        assert server.one_has_left()
        eventually(lambda: gone() is None)


@both
def test_an_open_log_does_not_keep_the_process_from_ending(protocol: str) -> None:
    program = (
        "import sys\nfrom worker.platform import AgentClient\n"
        "log = AgentClient(sys.argv[1], 'token').tail_job_logs('job-1', 300, sys.argv[2])\nprint(next(log))"
    )

    with log_server(lambda wire: wire.accept().line("a").wait_until_left()) as server:
        command = [sys.executable, "-W", "error", "-c", program, server.url, protocol]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("a\n", "", 0)


@both
def test_many_threads_follow_at_once(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept()
        started.wait(10)
        for number in range(300):
            wire.line(str(number))
        wire.complete()

    # More than there are threads in the background, and none waits for another one.
    started = threading.Barrier(16)
    with log_server(script) as server, client_of(server) as client, ThreadPoolExecutor(16) as threads:
        logs = [client.tail_job_logs("job-1", 15, protocol) for _ in range(16)]
        found = list(threads.map(list, logs))

    assert found == [[str(number) for number in range(300)]] * 16


@both
def test_all_logs_of_a_process_share_one_thread(protocol: Any, eventually: Eventually) -> None:
    before = threading.active_count()
    with log_server(lambda wire: wire.accept().line("a").wait_until_left()) as server:
        with client_of(server) as client, client_of(server) as other:
            logs = [each.tail_job_logs("job-1", 30, protocol) for each in (client, other) * 4]
            assert [next(log) for log in logs] == ["a"] * 8
            assert [each.name for each in threading.enumerate()].count("log-streams") == 1
        eventually(lambda: threading.active_count() <= before + 1)


def test_a_forked_child_reads_logs_of_its_own() -> None:
    program = """
import os, sys
from worker.platform import AgentClient, StreamError
client = AgentClient(sys.argv[1], "token")
inherited = client.tail_job_logs("job-1", 20)
assert next(inherited) == "0"
child = os.fork()
if child == 0:
    assert next(client.tail_job_logs("job-1", 20)) == "0"
    try:
        next(inherited)
    except StreamError:
        os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
print(*inherited)
"""
    parent_may_end = threading.Event()

    def script(wire: Wire) -> None:
        wire.accept().line("0")
        if len(server.paths) == 2:
            parent_may_end.set()
        else:
            parent_may_end.wait(10)
        for number in range(1, 2000):
            wire.line(str(number))
        wire.complete()

    with log_server(script) as server:
        command = [sys.executable, "-W", "error", "-c", program, server.url]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert ended.stderr == ""
    assert ended.stdout.split() == [str(number) for number in range(1, 2000)]


@both
@pytest.mark.parametrize("fail", [lambda wire: wire.reject(404), lambda wire: None], ids=["404", "hangs up"])
def test_an_explicit_protocol_fails_in_the_call(protocol: Any, fail: Script) -> None:
    with (
        log_server(fail) as server,
        client_of(server) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.tail_job_logs("job-1", 5, protocol)

    assert caught.value.status in (404, 503)
    assert caught.value.__context__ is None


def test_a_caller_falls_back_as_the_document_says() -> None:
    def script(wire: Wire) -> None:
        only_http(wire, lambda websocket: websocket.reject(404))

    with log_server(script) as server, client_of(server) as client:
        try:
            logs = client.tail_job_logs("job-1", protocol="websocket")
        except ClientError:
            logs = client.tail_job_logs("job-1", protocol="stream")
        assert list(logs) == ["over http"]


@both
def test_a_log_that_is_never_read_is_closed_when_forgotten(protocol: Any) -> None:
    with (
        log_server(lambda wire: wire.accept().line("a").wait_until_left()) as server,
        client_of(server) as client,
    ):
        log = client.tail_job_logs("job-1", 30, protocol)
        assert not server.one_has_left(0.1)
        del log
        gc.collect()
        assert server.one_has_left()


def only_http(wire: Wire, fail: Script) -> None:
    if wire.is_websocket:
        fail(wire)
    else:
        wire.accept().line("over http").complete()


@pytest.mark.parametrize(
    "fail",
    [
        lambda wire: wire.reject(404),
        lambda wire: wire.reject(200, b"all of the log"),
        lambda wire: None,
        lambda wire: wire.accept() and None,
        lambda wire: wire.accept().finish(1011),
        lambda wire: wire.wait_until_left(),
        lambda wire: wire.accept().wait_until_left(),
    ],
    ids=["rejected", "no websocket", "hangs up", "lost", "closed", "silent", "accepted, then silent"],
)
def test_auto_falls_back_to_http(fail: Script) -> None:
    with log_server(lambda wire: only_http(wire, fail)) as server, client_of(server) as client:
        assert list(client.tail_job_logs("job-1", 0.5, "auto")) == ["over http"]


@pytest.mark.parametrize(
    ("fail", "lines", "kind"),
    [
        (lambda wire: wire.accept().line("a") and None, ["a"], ClientConnectionError),
        (lambda wire: wire.accept().event(type="error", message="no"), [], StreamError),
        (lambda wire: wire.accept().piece("x" * 200), [], StreamLimitExceededError),
    ],
    ids=["after a line", "the agent's error", "a limit"],
)
def test_auto_stays_with_what_another_protocol_cannot_mend(
    fail: Script, lines: list[str], kind: type[ClientError]
) -> None:
    found, error = failure_of(lambda wire: only_http(wire, fail), "auto", max_bytes=100)

    assert (found, type(error)) == (lines, kind)


def test_the_package_does_without_websockets() -> None:
    program = "import sys; sys.modules['websockets'] = None; import worker.platform"

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.stderr, ended.returncode) == ("", 0)


def test_auto_does_without_websockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.client", None)
    monkeypatch.delitem(sys.modules, "worker.platform.streams.websocket", raising=False)

    with log_server(lambda wire: wire.accept().line("a").complete()) as server, client_of(server) as client:
        with pytest.raises(WebSocketError) as caught:
            list(client.tail_job_logs("job-1", 5, "websocket"))
        assert caught.value.status == 500
        assert list(client.tail_job_logs("job-1", 5, "auto")) == ["a"]
