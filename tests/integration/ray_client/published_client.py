"""Environments with the platform's published SDK, kept between test runs outside the project."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

MIN_PYTHON = (3, 12)
REQUIREMENT = "synapse-sdk"
CACHE = Path(tempfile.gettempdir()) / f"synapse-worker-tests-{os.getuid()}"


PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def python_of_published_client() -> Path:
    """The Python of an environment with the SDK alone; skips the test where it cannot be made."""
    return _python_of("synapse-sdk", [REQUIREMENT])


def python_with_worker() -> Path:
    """The Python of one that also has what this project's worker and sandbox need, but not the project."""
    changes = hashlib.sha256(PYPROJECT.read_bytes()).hexdigest()[:12]
    extras = ["--extra", "worker", "--extra", "sandbox"]
    return _python_of(f"synapse-sdk-worker-{changes}", [REQUIREMENT, "-r", str(PYPROJECT), *extras])


def _python_of(name: str, requirements: Sequence[str]) -> Path:
    base_python = _find_python()
    if base_python is None:
        pytest.skip("the published SDK needs a Python 3.12 or newer")
    environment = CACHE / name
    python = environment / "bin" / "python"
    if not python.exists():
        CACHE.mkdir(exist_ok=True)
        # Made in another folder and then renamed, so that an incomplete one is never used.
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            temporary = Path(folder) / "venv"
            subprocess.run(
                [base_python, "-m", "venv", temporary], check=True, capture_output=True, timeout=120
            )
            uv = Path(sys.executable).with_name("uv")
            install = [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                temporary / "bin" / "python",
                *requirements,
            ]
            done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                pytest.skip(f"the published SDK cannot be installed: {last}")
            temporary.rename(environment)
    return python


def _find_python() -> str | None:
    versions = Path.home() / ".pyenv" / "versions"
    found = [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)]
    candidates = [*(each for each in found if each), *map(str, sorted(versions.glob("3.1*/bin/python")))]
    check = f"import sys, venv; raise SystemExit(sys.version_info[:2] < {MIN_PYTHON})"
    for python in candidates:
        # A shim of pyenv fails when its version is not active.
        if subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0:
            return python
    return None
