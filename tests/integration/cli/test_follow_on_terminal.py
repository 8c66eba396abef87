"""`watch` and `logs --follow` on a terminal, until Ctrl-C."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from shared.messages import DeployMessage
from tests.harness.in_process_worker import RecordingPublisher
from worker.runs.runs import Runs, Timing
from worker.sandbox.processes import wait_for
from worker.sandbox.servers import RedisServer

# Processes started by tests that run in the background ignore Ctrl-C.
HANDLE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-c", f"{HANDLE_CTRL_C}; from worker.cli import main; main()"]
SHOW_CURSOR = "\x1b[?25h"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("command", [["watch", "42"], ["logs", "42", "--follow"]])
def test_ctrl_c_leaves_the_terminal_as_it_was(command: list[str], server: RedisServer) -> None:
    # Given a running run, followed on a terminal
    with Redis.from_url(server.url, decode_responses=True) as redis:
        runs = Runs(redis, RecordingPublisher(), Timing(60))
        message = DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})
        runs.store.accept(message, "deploy")
        runs.set_progress(runs.store.load("42"), "deploy", 30)
        runs.events.message("42", "a line of the log")
    controller, terminal = pty.openpty()
    os.set_blocking(controller, False)
    environ = {**os.environ, "REDIS_URL": server.url, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*COMMAND, *command],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environ,
        start_new_session=True,
    )
    os.close(terminal)
    output = TerminalOutput(controller)
    try:
        wait_for(lambda: "a line of the log" in output.text(), 20, "the log")

        # When it is interrupted
        process.send_signal(signal.SIGINT)

        # Then it ends with the usual exit code, without a traceback, and the cursor is shown
        assert process.wait(timeout=20) == 130
        text = output.text()
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert "Traceback" not in text
    assert "Aborted" not in text
    assert text.rfind("\x1b[?25l") <= text.rfind(SHOW_CURSOR)


class TerminalOutput:
    """The output that a terminal has received."""

    def __init__(self, file: int) -> None:
        self._file, self._text = file, ""

    def text(self) -> str:
        try:
            while data := os.read(self._file, 65536):
                self._text += data.decode(errors="replace")
        except (BlockingIOError, OSError):  # nothing yet, or the other side is gone
            pass
        return self._text
