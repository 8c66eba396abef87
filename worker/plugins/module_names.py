"""Names of modules that a release must not have at its top, where they would hide the host's own.

The folder of a release comes first on the path of its process. With a `types.py` or a `typing_extensions.py`
there the process of plugin code does not even start.
"""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from worker.plugins.errors import ReleaseInvalidError

_OWN: Final = frozenset({"worker", "shared", "ray"})
_HARMLESS: Final = frozenset({"antigravity", "idlelib", "test", "this", "turtle", "turtledemo"})
"""Of the standard library; no program imports them."""

_NAMES: Final = """
aiohappyeyeballs aiohttp aiosignal annotated_doc annotated_types anyio attr attrs certifi
charset_normalizer click colorama fastapi filelock frozenlist google greenlet grpc grpc_reflection h11
httpcore httpx idna jsonschema jsonschema_specifications msgpack multidict numpy opentelemetry
packaging propcache psutil pydantic pydantic_core pygments referencing requests rich rpds starlette
structlog typing_extensions typing_inspection urllib3 uvicorn uvloop watchfiles wcwidth yaml yarl
"""
_IMPORTED: Final = frozenset(_NAMES.split())
"""What processes of plugin code import before the author's modules: Ray's workers, Serve's replicas, ours."""


def check_module_names(folder: Path) -> None:
    """Raise `ReleaseInvalidError` that names every module at the top of a release whose name is taken."""
    taken = [
        f"{name!r} ({owner})" for name in modules_at_top(folder) if (owner := _owner_of(name)) is not None
    ]
    if taken:
        kind = "name is" if len(taken) == 1 else "names are"
        raise ReleaseInvalidError(f"its top-level {kind} taken by the host: {', '.join(taken)}; rename")


def modules_at_top(folder: Path) -> Iterator[str]:
    """Names of the modules and packages that can be imported from a release's folder."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" or (path / "__init__.py").is_file():
            yield path.name.removesuffix(".py")


def _owner_of(name: str) -> str | None:
    if name in _OWN:
        return "the worker's"
    if name in sys.stdlib_module_names and name not in _HARMLESS:
        return "Python's standard library"
    if name in _IMPORTED:
        return f"the package {next(iter(metadata.packages_distributions().get(name, [])), name)}"
    return None
