"""No process of a sandbox outlives it, and a killed Redis restarts with its data."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from worker.sandbox import Process, SandboxError, wait_for
from worker.sandbox.processes import PORT_RANGE, free_port, start_process
from worker.sandbox.servers import RedisServer

# A shell whose daemons have a session and a parent of their own, like Ray's.
DETACHING = "setsid sleep 1000 & (setsid sh -c 'sleep 1001 & sleep 1002' &); sleep 1003"


def have_ended(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


@pytest.fixture
def detaching(tmp_path: Path) -> Iterator[Process]:
    process = start_process("shell", ["sh", "-c", DETACHING], log=tmp_path / "log", grace_seconds=2)
    process.wait_until(lambda: len(process.pids()) >= 6, 10)
    yield process
    process.stop()


def test_stop_ends_detached_daemons(detaching: Process) -> None:
    pids = detaching.pids()
    assert detaching.pid in pids
    detaching.stop()
    assert have_ended(pids)
    assert not detaching.alive
    detaching.stop()


def test_kill_ends_detached_daemons(detaching: Process) -> None:
    pids = detaching.pids()
    detaching.kill()
    assert have_ended(pids)


def test_daemons_end_with_the_command(detaching: Process) -> None:
    pids = detaching.pids()
    os.kill(detaching.pid, signal.SIGTERM)
    wait_for(lambda: not detaching.alive, 10, "the end")
    assert have_ended(pids)


def test_command_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo ready; while true; do sleep 0.1; done"
    process = start_process("stubborn", ["sh", "-c", script], log=tmp_path / "log", grace_seconds=0.3)
    process.wait_until(lambda: "ready" in process.tail(), 10)
    process.stop()
    assert have_ended([process.pid])


def test_error_of_a_failed_start_has_the_log(tmp_path: Path) -> None:
    process = start_process("short", ["sh", "-c", "echo no such cluster; exit 3"], log=tmp_path / "log")
    with pytest.raises(SandboxError, match="short ended before it was ready\nno such cluster"):
        process.wait_until(lambda: False, 10)
    process.stop()


def test_scratch_dir_is_removed_after_the_end(tmp_path: Path) -> None:
    scratch_dir = tmp_path / "scratch"
    (scratch_dir / "below").mkdir(parents=True)
    start_process("cat", ["sleep", "1000"], log=tmp_path / "log", scratch_dir=scratch_dir).stop()
    assert not scratch_dir.exists()


def test_missing_command_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="nothing did not start"):
        start_process("nothing", ["/nonexistent/command"], log=tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_killed_owner(tmp_path: Path, number: signal.Signals) -> None:
    owner = tmp_path / "owner.py"
    owner.write_text(
        textwrap.dedent(f"""
        import time
        from pathlib import Path
        from worker.sandbox import Sandbox
        folder = Path({str(tmp_path)!r})
        with Sandbox(folder / "sandbox", plugins_dir=folder, with_ray=False) as box:
            print(box.redis.process.pid, box.backend.process.pid, flush=True)
            time.sleep(1000)
        """)
    )
    with subprocess.Popen([sys.executable, str(owner)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        supervisors = [psutil.Process(pid).ppid() for pid in pids]
        process.send_signal(number)
    wait_for(lambda: have_ended(pids + supervisors), 20, "the end of all processes")


def test_redis_keeps_its_data_after_restart_and_kill(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            client.set("a", "1")
            server.restart()
            assert client.get("a") == "1"
            client.set("b", "2")
            server.kill()
            with pytest.raises(redis.ConnectionError):
                client.get("b")
            server.start()
            assert client.mget("a", "b") == ["1", "2"]
    finally:
        server.stop()


def test_a_port_is_given_to_one_process_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given another process that has got all but one of some ports, on which no server listens yet
    ports = range(PORT_RANGE[0] - 20, PORT_RANGE[0])
    script = (
        "import sys; from worker.sandbox import processes;"
        f"processes.PORT_RANGE = {ports!r};"
        f"print(*(processes.free_port() for _ in range({len(ports) - 1})), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        taken = {int(port) for port in other.stdout.readline().split()}

        # When this one asks for a port, then it gets the one that is left
        monkeypatch.setattr("worker.sandbox.processes.PORT_RANGE", ports)
        assert {free_port()} == set(ports) - taken
