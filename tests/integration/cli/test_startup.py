"""The start of `synapse-worker`, in a process of its own."""

import subprocess
import sys


def test_list_of_commands_imports_no_heavy_library() -> None:
    heavy = {"redis", "celery", "kombu", "pydantic", "httpx", "structlog", "ray"}
    script = f"import sys, worker.cli.main; print(sorted({heavy} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_ctrl_c_during_imports_shows_no_traceback() -> None:
    # Given a process that handles Ctrl-C, which a background process ignores
    script = (
        "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from worker.cli.interrupts import exit_on_interrupt\n"
        "with exit_on_interrupt(): os.kill(os.getpid(), signal.SIGINT)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (130, "")
