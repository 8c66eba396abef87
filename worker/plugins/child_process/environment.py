"""Which environment plugin code has in a child process of the worker."""

from collections.abc import Mapping
from typing import Final

from worker.platform import contains_secret

_NEEDED: Final = frozenset(
    {
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "PATH",
        "PYTHONPATH",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
    }
)
"""Variables without which programs and libraries do not find their files, or the machine's settings."""
_NEEDED_BEGINNINGS: Final = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "OPENBLAS_")
"""How the names of those of the locale, of GPUs and of numeric libraries begin."""


def plugin_environment(
    environ: Mapping[str, str], declared: Mapping[str, str], own: Mapping[str, str]
) -> dict[str, str]:
    """The environment of plugin code: what programs need of the worker's, and what the release declares.

    Any other variable may hold a secret of the worker's host, whatever its name. `declared`: the `env_vars`
    of the release's `runtime_env`; `own`: what the author reads in `ctx.env`.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if (name in _NEEDED or name.startswith(_NEEDED_BEGINNINGS)) and not contains_secret(value)
    }
    return {**kept, **declared, **own}
