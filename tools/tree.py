"""The files that the checks read, and the findings that they print."""

import argparse
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("shared", "worker")

_LEFT_BEHIND = re.compile(r"(^|/)(\.|__pycache__/|[^/]+\.egg-info/|build/|dist/|site/)")


@dataclass(frozen=True, order=True)
class Finding:
    """One broken rule: where, what is wrong, and what to do."""

    path: str
    line: int
    """0 for a folder or the whole tree."""
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class Tree:
    """Files below `root`, as paths with forward slashes."""

    root: Path
    files: tuple[str, ...]

    @classmethod
    def tracked(cls, root: Path = ROOT) -> "Tree":
        """The files that Git tracks. One that was deleted and not yet committed is left out.

        In a source archive, which Git does not know, all files but those that tools leave behind.
        """
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=root, check=False, capture_output=True, text=True
        )
        if listed.returncode != 0:
            found = cls.below(root).files
            return cls(root, tuple(path for path in found if not _LEFT_BEHIND.search(path)))
        names = sorted(name for name in listed.stdout.split("\0") if name)
        return cls(root, tuple(name for name in names if (root / name).is_file()))

    @classmethod
    def below(cls, root: Path) -> "Tree":
        """All files of a folder, tracked or not."""
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return cls(root, tuple(path.relative_to(root).as_posix() for path in paths))

    def read(self, path: str) -> str:
        """The text of a file."""
        return (self.root / path).read_text(encoding="utf-8")

    def python(self, folders: Iterable[str] = PRODUCT) -> list[str]:
        """The Python files below the given folders."""
        prefixes = tuple(f"{folder}/" for folder in folders)
        return [path for path in self.files if path.endswith(".py") and path.startswith(prefixes)]


def parser_of(check: str, description: str | None) -> argparse.ArgumentParser:
    """The command line of a check, without options of its own."""
    return argparse.ArgumentParser(
        prog=f"python -m tools.{check}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def report(findings: Sequence[Finding], what: str) -> int:
    """Print the findings, a line each; returns the exit code."""
    for finding in sorted(findings):
        print(finding)
    if findings:
        print(f"{what}: {len(findings)} findings")
    return 1 if findings else 0
