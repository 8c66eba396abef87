"""The demo, as a new user runs it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.marked_processes import marked_environment, marked_processes
from worker.sandbox import wait_for

# Processes started by tests that run in the background ignore Ctrl-C.
HANDLE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-c", f"{HANDLE_CTRL_C}; from worker.cli import main; main()", "demo"]

# It starts Ray and writes 1,798 annotations: 37 s on a quick machine, three times that on a busy one.
pytestmark = pytest.mark.timeout(420)


def test_demo_annotates_its_images_and_leaves_no_process() -> None:
    # When the demo runs
    mark, environ = marked_environment()
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=400, env=environ)

    # Then both methods succeed on every image with an accuracy above 90 %
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"(inference|file)\s*│\s*SUCCEEDED\s*│\s*899\s*│\s*0\s*│\s*([\d.]+)%", done.stdout)
    assert [method for method, _ in rows] == ["inference", "file"], done.stdout
    assert all(float(accuracy) > 90 for _, accuracy in rows)
    # And every process that it started has ended
    wait_for(lambda: not marked_processes(mark), 20, "end of the demo's processes")


@pytest.mark.chaos  # In `make test`: the sandbox's, below which the demo runs.
def test_ctrl_c_ends_every_process_of_the_demo(tmp_path: Path) -> None:
    # Given a demo whose Ray and worker are running
    mark, environ = marked_environment()
    log = tmp_path / "demo.log"
    with log.open("wb") as sink:
        demo = subprocess.Popen(COMMAND, stdout=sink, stderr=sink, env=environ, start_new_session=True)
    try:
        wait_for(
            lambda: "worker 1 is ready" in log.read_text() or demo.poll() is not None,
            180,
            "the demo's worker",
        )
        assert len(marked_processes(mark)) > 5

        # When it is interrupted
        demo.send_signal(signal.SIGINT)

        # Then it ends with the usual exit code, and every process has ended
        assert demo.wait(timeout=60) == 130, log.read_text()
    finally:
        demo.kill()
        demo.wait()
    wait_for(lambda: not marked_processes(mark), 20, "end of the demo's processes")
