"""Names of modules that a release must not have at its top, where they would hide the host's own.

The folder of a release comes first on the path of its process. With a `types.py` or a `typing_extensions.py`
there the process of plugin code does not even start.
"""

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement

from worker.plugins.errors import ReleaseInvalidError

_DISTRIBUTION: Final = "synapse-worker[worker]"
_OWN: Final = frozenset({"worker", "shared", "ray"})
_HARMLESS: Final = frozenset({"antigravity", "idlelib", "test", "this", "turtle", "turtledemo"})
"""Of the standard library; no program imports them."""


def check_module_names(folder: Path) -> None:
    """Raise `ReleaseInvalidError` that names every module at the top of a release whose name is taken."""
    taken = [
        f"{name!r} ({owner})" for name in _modules_at_top(folder) if (owner := _owner_of(name)) is not None
    ]
    if taken:
        kind = "name is" if len(taken) == 1 else "names are"
        raise ReleaseInvalidError(f"its top-level {kind} taken by the host: {', '.join(taken)}; rename")


def _modules_at_top(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" or (path / "__init__.py").is_file():
            yield path.name.removesuffix(".py")


def _owner_of(name: str) -> str | None:
    if name in _OWN:
        return "the worker's"
    if name in sys.stdlib_module_names and name not in _HARMLESS:
        return "Python's standard library"
    distribution = _modules_of_requirements().get(name)
    return f"the package {distribution}" if distribution else None


@lru_cache(maxsize=1)
def _modules_of_requirements() -> dict[str, str]:
    """Modules of the packages that the worker and Ray need, and of nothing else that is installed here."""
    needed = _requirements()
    return {
        module: owners[0]
        for module, distributions in metadata.packages_distributions().items()
        if (owners := [each for each in distributions if _normalized(each) in needed])
    }


def _requirements() -> set[str]:
    found: set[str] = set()
    open_requirements = [Requirement(_DISTRIBUTION)]
    seen: set[str] = set()
    while open_requirements:
        requirement = open_requirements.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            declared = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(_normalized(requirement.name))
        for text in declared:
            try:
                child = Requirement(text)
            except InvalidRequirement:
                continue
            if _applies(child, requirement.extras):
                child.marker = None
                open_requirements.append(child)
    return found


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
