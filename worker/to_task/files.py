"""The files of a task's data unit, in either of the shapes that the platform sends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.to_task.errors import TaskFailedError

_NAMES = ("file_name_original", "filename", "name")
_SPECIFICATIONS = ("specification", "specification_name", "name")


@dataclass(frozen=True)
class File:
    """One file: `specification` is its name in the data collection."""

    url: str
    name: str | None
    specification: str | None
    is_primary: bool


def files_of(found: Any) -> list[File]:
    """The files in `found`, a mapping from specification to file or a list of files."""
    if isinstance(found, Mapping):
        return [_file(each, str(specification)) for specification, each in found.items()]
    if isinstance(found, list):
        return [_file(each, None) for each in found]
    raise TaskFailedError("the task's data unit has no files")


def primary_of(files: list[File]) -> File:
    """The primary file."""
    for file in files:
        if file.is_primary:
            return file
    raise TaskFailedError("the task has no primary file")


def of_specification(files: list[File], specification: str) -> File:
    """The file of the target specification."""
    for file in files:
        if file.specification == specification:
            return file
    raise TaskFailedError(f"the task has no file of the specification {specification!r}")


def _file(found: Any, specification: str | None) -> File:
    if not isinstance(found, Mapping):
        raise TaskFailedError("the files of the task's data unit are malformed")
    specification = specification or _first(found, _SPECIFICATIONS)
    url = found.get("url")
    if not isinstance(url, str) or not url:
        raise TaskFailedError(f"the task's file of the specification {specification!r} has no url")
    return File(url, _first(found, _NAMES), specification, found.get("is_primary") is True)


def _first(found: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if isinstance(value := found.get(name), str) and value), None)
