"""The driver process, without Ray: calls, deadlines, and how it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from worker.actions.serve_state import forget_lost_controller
from worker.plugins import RayDriverError, RunEndedError, waits_for_run
from worker.plugins.ray_driver import RayDriver, operations
from worker.sandbox.processes import wait_for

STARTS_SECONDS = 60.0
"""For the first call, which waits for the process to start."""


@pytest.fixture
def driver() -> Iterator[RayDriver]:
    made = RayDriver()
    made.start()
    yield made
    made.kill()


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_call_runs_in_the_other_process(driver: RayDriver) -> None:
    assert driver.call(os.getpid, timeout=STARTS_SECONDS) == driver.pid
    assert driver.pid != os.getpid()


def test_an_error_is_raised_by_its_class_and_text(driver: RayDriver) -> None:
    with pytest.raises(RayDriverError, match=r"^ValueError$") as caught:
        driver.call(int, "seven", timeout=STARTS_SECONDS)

    assert "seven" in caught.value.text


def test_calls_run_side_by_side(driver: RayDriver) -> None:
    driver.call(os.getpid, timeout=STARTS_SECONDS)
    slow = threading.Thread(target=driver.call, args=(time.sleep, 2), kwargs={"timeout": STARTS_SECONDS})
    slow.start()

    driver.call(os.getpid, timeout=STARTS_SECONDS)

    assert slow.is_alive()
    slow.join(STARTS_SECONDS)


def test_calls_that_import_serve_at_once_find_it_whole(driver: RayDriver) -> None:
    # Given a driver that imports Serve already
    driver.call(operations.load_ray, timeout=STARTS_SECONDS)
    driver.send(operations.load_serve)

    # When calls need it, then none finds it half made
    with ThreadPoolExecutor(8) as threads:
        calls = [
            threads.submit(driver.call, forget_lost_controller, timeout=STARTS_SECONDS) for _ in range(8)
        ]
        assert [call.exception() for call in calls] == [None] * 8


def test_a_call_that_hangs_is_ended_with_its_process(driver: RayDriver) -> None:
    # Given a process with a call that is in time
    pid = driver.call(os.getpid, timeout=STARTS_SECONDS)
    errors: list[Exception] = []

    def call() -> None:
        try:
            driver.call(time.sleep, 600, timeout=600)
        except RayDriverError as error:
            errors.append(error)

    other = threading.Thread(target=call)
    other.start()

    # When another passes its deadline, then it fails, and the process is gone with all its calls
    begun = time.monotonic()
    with pytest.raises(RayDriverError, match=r"no answer within 0\.2 s"):
        driver.call(time.sleep, 600, timeout=0.2)
    assert time.monotonic() - begun < 10
    other.join(10)
    assert [str(error) for error in errors] == ["the process that talks to Ray has ended"]
    wait_for(lambda: is_gone(pid), 10, "the end of the driver process")

    # And a new one answers
    assert not driver.is_running
    driver.start()
    assert driver.call(os.getpid, timeout=STARTS_SECONDS) != pid


def test_a_frozen_process_delays_no_caller_beyond_its_deadline(driver: RayDriver) -> None:
    # Given a process that does not even read
    pid = driver.call(os.getpid, timeout=STARTS_SECONDS)
    os.kill(pid, signal.SIGSTOP)

    # When more is sent than the pipe holds, then the call fails at its deadline
    begun = time.monotonic()
    with pytest.raises(RayDriverError, match="no answer within 1 s"):
        driver.call(len, b"x" * 10_000_000, timeout=1)
    assert time.monotonic() - begun < 10
    wait_for(lambda: is_gone(pid), 10, "the end of the driver process")


def test_a_call_for_a_run_that_ends_is_abandoned_alone(driver: RayDriver, tmp_path: Path) -> None:
    # Given a process that hangs, with the calls of two runs
    pid = driver.call(os.getpid, timeout=STARTS_SECONDS)
    os.kill(pid, signal.SIGSTOP)
    other = ThreadPoolExecutor(1).submit(driver.call, os.getpid, timeout=STARTS_SECONDS)

    # When one of the runs ends, then its call is abandoned long before its deadline
    begun = time.monotonic()
    before = tmp_path.stat().st_mtime_ns
    with waits_for_run(lambda: True), pytest.raises(RunEndedError):
        driver.call(tempfile.mkdtemp, "", "", str(tmp_path), timeout=STARTS_SECONDS, undo=os.rmdir)
    assert time.monotonic() - begun < 10

    # And the process lives; when it goes on, the other call is answered, and what was abandoned is undone
    os.kill(pid, signal.SIGCONT)
    assert other.result(STARTS_SECONDS) == pid
    wait_for(lambda: tmp_path.stat().st_mtime_ns > before and not any(tmp_path.iterdir()), 10, "the undo")


def test_a_killed_process_fails_its_calls_at_once(driver: RayDriver) -> None:
    driver.call(os.getpid, timeout=STARTS_SECONDS)

    with pytest.raises(RayDriverError, match="has ended"):
        driver.call(os._exit, 1, timeout=STARTS_SECONDS)

    wait_for(lambda: not driver.is_running, 10, "notice of the process's end")


def test_signals_for_the_worker_leave_the_process_alone(driver: RayDriver) -> None:
    pid = driver.call(os.getpid, timeout=STARTS_SECONDS)

    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)

    assert driver.call(os.getpid, timeout=STARTS_SECONDS) == pid


def test_the_process_ends_with_a_worker_that_is_killed() -> None:
    # Given a worker with a driver process
    script = (
        "import os, signal; from worker.plugins.ray_driver import RayDriver;"
        "driver = RayDriver(); driver.start();"
        "print(driver.call(os.getpid, timeout=60), flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        assert not is_gone(pid)

        # When it is killed
        worker.kill()

    # Then the driver process ends, too
    wait_for(lambda: is_gone(pid), 15, "the end of the driver process")
