"""A release's requirements.txt, read as pip reads it and turned into a part of Ray's runtime environment."""

import codecs
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shared.messages import JsonObject
from worker.plugins.config import INSTALLERS, ReleaseConfig
from worker.plugins.errors import ReleaseInvalidError

FILE: Final = "requirements.txt"
WORKING_DIR: Final = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
"""Ray replaces this with the folder of the unpacked package."""

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_COMMENT = re.compile(r"(^|\s+)#.*$")
_OPTION = re.compile(r"(?P<name>-[a-zA-Z](?=\S)|--?[a-zA-Z][a-zA-Z-]*)[\s=]*(?P<value>.*)")
_INCLUDES: Final = frozenset({"-r", "--requirement"})
_PATHS: Final = frozenset({"-c", "--constraint", "-f", "--find-links"})
_IMPOSSIBLE: Final = frozenset({"-e", "--editable"})


@dataclass
class Requirements:
    """What a release asks pip or uv to install, and the options for that."""

    packages: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    paths: list[tuple[str, str]] = field(default_factory=list)
    """Options that name a path on the node: of the release's unpacked package, or an absolute one."""


def read_requirements(folder: Path) -> Requirements:
    """Those of requirements.txt and of the files that it includes; none without one.

    Raises `ReleaseInvalidError` that names the file and the line that cannot be installed.
    """
    found = Requirements()
    if (folder / FILE).is_file():
        _read(folder.resolve(), FILE, found, ())
    return found


def installation(folder: Path, config: ReleaseConfig) -> JsonObject:
    """The part of a runtime environment that installs the release's requirements; empty without any.

    Raises `ReleaseInvalidError` for what cannot be installed, or would not be.
    """
    found = read_requirements(folder)
    if not found.packages:
        return {}
    if installers := sorted(INSTALLERS & config.runtime_env.keys()):
        raise ReleaseInvalidError(
            f"{FILE} and runtime_env.{installers[0]} both say what to install, and Ray takes one: keep one"
        )
    paths = list(found.paths)
    if config.wheels_dir:
        declared = f"wheels_dir: {config.wheels_dir}"
        wheels = _included(folder.resolve(), "config.yaml", declared, config.wheels_dir, is_file=False)
        paths.append(("--find-links", f"{WORKING_DIR}/{wheels}"))
    if config.package_manager == "pip":
        # Of pip's options Ray expands no variable, but pip does within the file that Ray makes of `packages`.
        lines = [f"{option} {path}" for option, path in paths]
        options = {"pip_install_options": found.options} if found.options else {}
        return {"pip": {"packages": [*lines, *found.packages], **options}}
    words = [*found.options, *(word for path in paths for word in path)]
    return {"uv": {"packages": found.packages, **({"uv_pip_install_options": words} if words else {})}}


def _read(folder: Path, name: str, found: Requirements, including: tuple[str, ...]) -> None:
    if name in including:
        raise ReleaseInvalidError(f"{name} includes itself")
    for line in _lines(name, (folder / name).read_bytes()):
        if not line.startswith("-"):
            found.packages.append(_package(folder, name, line))
            continue
        option = _OPTION.fullmatch(line)
        key, value = (option["name"], option["value"].strip("\"' ")) if option else (line, "")
        if key in _IMPOSSIBLE:
            raise ReleaseInvalidError(f"{name}: {line!r} cannot be installed from a package on Ray's nodes")
        if key in _INCLUDES:
            _read(folder, _included(folder, name, line, value), found, (*including, name))
        elif key in _PATHS and Path(value).is_absolute():
            # Of the node: whether it is there is seen where it is installed, and pip names it.
            found.paths.append((key, value))
        elif key in _PATHS and "://" not in value:
            path = _included(folder, name, line, value, is_file=False)
            found.paths.append((key, f"{WORKING_DIR}/{path}"))
        else:
            found.options += _words(name, line)


def _package(folder: Path, name: str, line: str) -> str:
    """A package as the node installs it: one of the release's own files is in the unpacked package there."""
    path = re.split(r"[\s;\[@]", line, maxsplit=1)[0]
    is_path = "/" in path or path.endswith((".whl", ".tar.gz", ".zip"))
    if not is_path or ":" in path or Path(path).is_absolute():
        return line
    inside = _included(folder, name, line, path, is_file=False)
    return f"{WORKING_DIR}/{inside}{line[len(path) :]}"


def _included(folder: Path, name: str, line: str, value: str, *, is_file: bool = True) -> str:
    """The path of another file of the release, relative to the release's folder."""
    path = ((folder / name).parent / value).resolve()
    exists = path.is_file() if is_file else path.exists()
    if not value or not path.is_relative_to(folder) or not exists:
        raise ReleaseInvalidError(f"{name}: {line!r} names nothing within the release")
    return path.relative_to(folder).as_posix()


def _words(name: str, line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ReleaseInvalidError(f"{name}: {line!r} cannot be read: {error}") from None


def _lines(name: str, content: bytes) -> Iterator[str]:
    mark, encoding = next((each for each in _BOMS if content.startswith(each[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        raise ReleaseInvalidError(f"{name} is not text in UTF-8, nor in UTF-16 with a mark") from None
    if "\0" in text:
        raise ReleaseInvalidError(f"{name} is not text in UTF-8, nor in UTF-16 with a mark")
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in joined.splitlines():
        if stripped := _COMMENT.sub("", line).strip():
            yield stripped
