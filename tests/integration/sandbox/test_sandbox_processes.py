"""Nothing of a sandbox outlives it, and what is killed comes back with its data."""

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
from worker.sandbox.processes import start_process
from worker.sandbox.servers import RedisServer

# A shell whose daemon has a session and a parent of its own, as Ray's have.
DETACHING = "setsid sleep 1000 & (setsid sh -c 'sleep 1001 & sleep 1002' &); sleep 1003"


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


@pytest.fixture
def detaching(tmp_path: Path) -> Iterator[Process]:
    process = start_process("shell", ["sh", "-c", DETACHING], log=tmp_path / "log", grace_seconds=2)
    process.wait_until(lambda: len(process.pids()) >= 6, 10)
    yield process
    process.stop()


def test_stop_ends_what_has_detached_itself(detaching: Process) -> None:
    pids = detaching.pids()
    assert detaching.pid in pids
    detaching.stop()
    assert gone(pids)
    assert not detaching.alive
    detaching.stop()


def test_kill_ends_everything(detaching: Process) -> None:
    pids = detaching.pids()
    detaching.kill()
    assert gone(pids)


def test_a_command_that_ends_takes_its_daemons_along(detaching: Process) -> None:
    pids = detaching.pids()
    os.kill(detaching.pid, signal.SIGTERM)
    wait_for(lambda: not detaching.alive, 10, "the end")
    assert gone(pids)


def test_a_command_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo ready; while true; do sleep 0.1; done"
    process = start_process("stubborn", ["sh", "-c", script], log=tmp_path / "log", grace_seconds=0.3)
    process.wait_until(lambda: "ready" in process.tail(), 10)
    process.stop()
    assert gone([process.pid])


def test_what_ends_before_it_is_ready_says_why(tmp_path: Path) -> None:
    process = start_process("short", ["sh", "-c", "echo no such cluster; exit 3"], log=tmp_path / "log")
    with pytest.raises(SandboxError, match="short ended before it was ready\nno such cluster"):
        process.wait_until(lambda: False, 10)
    process.stop()


def test_its_scratch_goes_with_it(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "below").mkdir(parents=True)
    start_process("cat", ["sleep", "1000"], log=tmp_path / "log", scratch_dir=scratch).stop()
    assert not scratch.exists()


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="nothing did not start"):
        start_process("nothing", ["/nonexistent/command"], log=tmp_path / "log")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_an_owner_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
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
        guardians = [psutil.Process(pid).ppid() for pid in pids]
        process.send_signal(number)
    wait_for(lambda: gone(pids + guardians), 20, "the end of all")


def test_redis_keeps_its_data_over_a_restart_and_a_kill(tmp_path: Path) -> None:
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
