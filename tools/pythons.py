"""Unit tests on each newer Python that is found on this machine, and integration tests on the newest of them.

    python -m tools.pythons

Each has an environment of its own (`.venv-3.12`), made by `make setup`. One that is not found is named, and
is no failure; `make test` runs on the Python of `.venv`, the oldest that is supported.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.tree import ROOT

NEWER_MINORS = (12, 13, 14)


def find_python(minor: int) -> str | None:
    """An interpreter of this version that can make environments: on PATH, or in a pyenv."""
    versions = Path.home() / ".pyenv" / "versions"
    on_path = shutil.which(f"python3.{minor}")
    in_pyenv = sorted(versions.glob(f"3.{minor}.*/bin/python"), reverse=True)
    check = f"import sys, venv; raise SystemExit(sys.version_info[:2] != (3, {minor}))"
    for python in [*([on_path] if on_path else []), *map(str, in_pyenv)]:
        # A shim of pyenv fails when its version is not active.
        if subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0:
            return python
    return None


def run(minor: int, python: str, target: str) -> bool:
    """Run a target of the Makefile in the environment of this version; whether it passed."""
    command = ["make", target, f"VENV=.venv-3.{minor}", f"PYTHON={python}"]
    print(f"Python 3.{minor}: make {target}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests; 1 when one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unit", action="store_true", help="unit tests alone")
    options = parser.parse_args(arguments)
    found = {minor: find_python(minor) for minor in NEWER_MINORS}
    pythons = {minor: python for minor, python in found.items() if python}
    runs = [(minor, "unit") for minor in pythons]
    if pythons and not options.unit:
        runs.append((max(pythons), "integration"))
    outcomes = {(minor, target): run(minor, pythons[minor], target) for minor, target in runs}
    for minor in NEWER_MINORS:
        if minor not in pythons:
            print(f"Python 3.{minor}: not found on this machine")
    for (minor, target), has_passed in outcomes.items():
        print(f"Python 3.{minor}: {target} tests {'passed' if has_passed else 'FAILED'}")
    return 0 if all(outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
