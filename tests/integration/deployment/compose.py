"""`docker-compose.yml` as compose reads it: merged, and with the defaults of its variables."""

import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]

_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*))?\}")


def _filled_in(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled_in(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled_in(inner, variables) for inner in value]
    if isinstance(value, str):
        filled = _VARIABLE.sub(lambda found: variables.get(found[1], found[2] or ""), value)
        return filled.replace("$$", "$")
    return value


def compose_file(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file with these variables, or the defaults that it names."""
    return _filled_in(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), variables or {})


@cache
def services() -> dict[str, dict[str, Any]]:
    """The services by name."""
    return compose_file()["services"]


def arguments(command: str | list[str]) -> list[str]:
    """The arguments of a `command`."""
    return shlex.split(command) if isinstance(command, str) else command


def health_check(service: Mapping[str, Any]) -> list[str] | None:
    """The command of a service's own check; None where it has the image's, or none."""
    test = service.get("healthcheck", {}).get("test")
    if test is None:
        return None
    kind, *command = test
    return ["sh", "-c", *command] if kind == "CMD-SHELL" else command
