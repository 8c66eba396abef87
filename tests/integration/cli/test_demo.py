"""The demo, as a new user runs it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
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


@pytest.mark.chaos  # It takes as long as the demo, which `make test` runs once.
def test_kept_demo_leaves_the_page_open_with_its_images(tmp_path: Path) -> None:
    # Given a demo that is kept
    mark, environ = marked_environment()
    log = tmp_path / "demo.log"
    with log.open("wb") as sink:
        demo = subprocess.Popen(
            [*COMMAND, "--keep"], stdout=sink, stderr=sink, env=environ, start_new_session=True
        )
    try:
        wait_for(lambda: "/#/labels" in log.read_text() or demo.poll() is not None, 400, "the page")

        # Then the page has its images with their labels, and its runs
        text = " ".join(log.read_text().split())
        url = re.search(r"the live page stays on (http://[\d.:]+)", text)
        assert url is not None, text
        runs = httpx.get(f"{url[1]}/api/samples", trust_env=False).json()
        assert [run["method"] for run in runs] == ["inference", "file"]
        assert sum(sample["label"] == sample["truth"] for sample in runs[0]["samples"]) > 80
        image = httpx.get(f"{url[1]}/samples/{runs[0]['samples'][0]['image']}", trust_env=False)
        assert image.headers["content-type"] == "image/png"
        shown = httpx.get(f"{url[1]}/api/runs/{runs[0]['job']}", trust_env=False).json()
        assert shown["values"]["status"] == "SUCCEEDED"

        # When Ctrl-C is pressed, then all ends, and nothing is wrong
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=60) == 0, log.read_text()
    finally:
        demo.kill()
        demo.wait()
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
