"""The command `sandbox`: Ctrl-C while it starts, and reports of workers that end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness.marked_processes import marked_environment, marked_processes
from worker.cli import sandbox
from worker.sandbox.processes import Process, start_process, wait_for

# Processes started by tests that run in the background ignore Ctrl-C.
HANDLE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-c", f"{HANDLE_CTRL_C}; from worker.cli import main; main()", "sandbox"]


def test_ctrl_c_ends_a_sandbox_that_is_starting(tmp_path: Path) -> None:
    # Given a sandbox whose Ray is starting
    log, (mark, environ) = tmp_path / "sandbox.log", marked_environment()
    with log.open("wb") as sink:
        sandbox = subprocess.Popen(
            COMMAND, stdout=sink, stderr=sink, cwd=tmp_path, env=environ, start_new_session=True
        )
    try:
        wait_for(lambda: "backend on" in log.read_text() or sandbox.poll() is not None, 60, "its backend")
        assert len(marked_processes(mark)) > 5

        # When it is interrupted
        sandbox.send_signal(signal.SIGINT)
        interrupted = time.monotonic()

        # Then it ends soon, with the usual exit code
        assert sandbox.wait(timeout=30) == 130, log.read_text()
    finally:
        sandbox.kill()
        sandbox.wait()
    assert time.monotonic() - interrupted < 10
    assert "Traceback" not in log.read_text()
    # And every process that it started has ended
    wait_for(lambda: not marked_processes(mark), 20, "end of the sandbox's processes")


def test_ended_worker_is_reported_with_exit_code_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given two workers, of which one is killed
    log = tmp_path / "worker.log"
    workers = [start_process(name, ["sleep", "60"], log=log) for name in ("worker1", "worker2")]
    workers[0].kill()
    polls = iter([None, None])

    def pause(_seconds: float) -> None:
        if next(polls, "done") == "done":
            raise KeyboardInterrupt

    monkeypatch.setattr("worker.cli.sandbox.time.sleep", pause)

    # When they are watched for three polls
    with pytest.raises(KeyboardInterrupt):
        sandbox._report_ended_workers(workers)
    workers[1].stop()

    # Then its end is reported once
    assert capsys.readouterr().out.splitlines() == [f"worker1 has ended (exit code 137), see {log}"]


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_exit_code_is_that_of_a_shell(tmp_path: Path, script: str, code: int) -> None:
    process: Process = start_process("script", ["sh", "-c", script], log=tmp_path / "log")

    wait_for(lambda: process.exit_code is not None, 10, "the end")

    assert process.exit_code == code
