"""The platform's published client in an environment of its own, kept between runs outside of the project."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

OLDEST = (3, 12)
REQUIREMENT = "synapse-sdk"
CACHE = Path(tempfile.gettempdir()) / f"synapse-worker-tests-{os.getuid()}"


def python_of_published_client() -> Path:
    """A Python that has it; skips the test where there cannot be one."""
    base = _new_enough_python()
    if base is None:
        pytest.skip("the published client needs a Python 3.12 or newer")
    home = CACHE / "synapse-sdk"
    python = home / "bin" / "python"
    if not python.exists():
        CACHE.mkdir(exist_ok=True)
        # Made beside and then moved, so that half of one is never found.
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "venv"
            subprocess.run([base, "-m", "venv", made], check=True, capture_output=True, timeout=120)
            install = [made / "bin" / "python", "-m", "pip", "install", "--quiet", REQUIREMENT]
            done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                pytest.skip(f"the published client cannot be installed: {last}")
            made.rename(home)
    return python


def _new_enough_python() -> str | None:
    versions = Path.home() / ".pyenv" / "versions"
    found = [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)]
    candidates = [*(each for each in found if each), *map(str, sorted(versions.glob("3.1*/bin/python")))]
    question = f"import sys, venv; raise SystemExit(sys.version_info[:2] < {OLDEST})"
    for python in candidates:
        # A shim of pyenv may stand for a version that is not active.
        if subprocess.run([python, "-c", question], capture_output=True, check=False).returncode == 0:
            return python
    return None
