"""The first moments of the command, as its own process."""

import subprocess
import sys


def test_the_list_of_commands_needs_neither_redis_nor_celery_nor_clients() -> None:
    heavy = {"redis", "celery", "kombu", "pydantic", "httpx", "structlog", "ray"}
    script = f"import sys, worker.cli.main; print(sorted({heavy} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_ctrl_c_while_modules_are_loaded_shows_no_traceback() -> None:
    # Given a process that heeds Ctrl-C, which one in the background does not
    script = (
        "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from worker.cli.interrupts import exit_on_interrupt\n"
        "with exit_on_interrupt(): os.kill(os.getpid(), signal.SIGINT)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (130, "")
