"""The tests of celery and kombu, from their source packages on PyPI at the versions in `requirements/`."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".foreign"
PINS = ROOT / "requirements" / "development.txt"


def fetch_tests(project: str) -> Path:
    """The folder with the project's `t`; downloaded and unpacked where the cache has it not yet."""
    pin = _pin(project)
    version = pin.partition("==")[2].split()[0]
    folder = CACHE / f"{project}-{version}"
    if not folder.exists():
        archive = CACHE / f"{folder.name}.tar.gz"
        if not archive.exists():
            _download(pin)
        _unpack(archive, folder)
    return folder


def _pin(project: str) -> str:
    """The project's line in the compiled requirements, with its hashes."""
    found = re.search(rf"^{project}==(?:.*\\\n)*.*$", PINS.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise LookupError(f"{PINS} has no version of {project}")
    return found[0]


def _download(pin: str) -> None:
    """Download one source package; pip compares it with the hashes of the pin."""
    CACHE.mkdir(exist_ok=True)
    requirements = CACHE / "requirements.txt"
    requirements.write_text(pin + "\n", encoding="utf-8")
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(CACHE)]
    subprocess.run([*command, "--requirement", str(requirements)], check=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the tests and the options of pytest alone: the code under test is the installed one."""
    partial = folder.with_suffix(".partial")
    with tarfile.open(archive) as tar:
        wanted = ("t/", "pyproject.toml", "setup.cfg")
        members = [one for one in tar if one.name.partition("/")[2].startswith(wanted)]
        tar.extractall(partial, members, filter="data")
    (partial / folder.name).rename(folder)
    partial.rmdir()
