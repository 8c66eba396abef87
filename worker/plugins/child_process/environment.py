"""Which environment plugin code has in a child process of the worker."""

from collections.abc import Mapping
from typing import Final

from worker.platform import contains_secret

_WORKERS_OWN: Final = (
    "SYNAPSE_",
    "WORKER_",
    "CELERY_",
    "FLOWER_",
    "REDIS_",
    "PLUGINS_DIR",
    "RAY_ADDRESS",
    "RAY_AUTH_",
)
"""How the names of variables begin that are the worker's settings, or Ray's secrets."""
_NEEDED: Final = frozenset({"PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR"})


def plugin_environment(
    environ: Mapping[str, str], declared: Mapping[str, str], own: Mapping[str, str]
) -> dict[str, str]:
    """The environment of plugin code: that of the worker without its settings and secrets, and the release's.

    A variable is left out for its value, too, because a secret may stand under any name. `declared`: the
    `env_vars` of the release's `runtime_env`; `own`: what the author reads in `ctx.env`.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name in _NEEDED or not (name.startswith(_WORKERS_OWN) or contains_secret(value))
    }
    return {**kept, **declared, **own}
