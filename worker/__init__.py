"""synapse-worker: a Celery worker that deploys models on Ray Serve and pre-annotates tasks.

`celery -A worker worker` finds the app here. It is made on first use, so that plugin code, which imports
`worker.actions` in processes of Ray, needs neither the broker nor its settings.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def load_on_use(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's `__getattr__` for names whose modules take long to import.

    Args:
        package: The package's own `__name__`.
        modules: By name the module that defines it, or `module:name` where it has another name there.

    Returns:
        A function that imports the module when its name is used; it raises `AttributeError` for other names.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, other_name = modules[name].partition(":")
        return getattr(import_module(module), other_name or name)

    return load


__getattr__ = load_on_use(__name__, {"celery": "worker.app:app"})
