"""Settings in files: `REDIS_URL_FILE` names a file with the value of `REDIS_URL`, as secrets are mounted."""

import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Final

FILE_SUFFIX: Final = "_FILE"
MAX_FILE_BYTES: Final = 64 * 1024

_BEGINNINGS: Final = ("SYNAPSE_", "WORKER_", "REDIS_URL", "CELERY_BROKER_URL", "PLUGINS_DIR", "RAY_ADDRESS")
"""How settings begin, written here too: every command imports this module, so it imports nothing slow."""


def setting_text(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text of the setting `REDIS_URL`, or of the file that `REDIS_URL_FILE` names; empty without both.

    Raises `ValueError`, whose text follows the setting's name, where both are set or the file cannot be used.
    """
    text, path = environ.get(name, "").strip(), environ.get(name + FILE_SUFFIX, "").strip()
    if not path:
        return text
    if text:
        raise ValueError(f"is set, and so is {name}{FILE_SUFFIX}: remove one of them")
    reason = f"cannot be read from the file that {name}{FILE_SUFFIX} names"
    try:
        # Not the whole of a file that somebody named by mistake.
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8").strip()
    except OSError as error:
        raise ValueError(f"{reason}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{reason}: it is not UTF-8") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{reason}: it is longer than 64 KB")
    if not text:
        raise ValueError(f"{reason}: it is empty")
    return text


def texts_in_files(
    names: Iterable[str], environ: Mapping[str, str] = os.environ
) -> dict[str, str | ValueError]:
    """The texts of those of these settings that stand in files; a mistake stands in place of the text."""
    found: dict[str, str | ValueError] = {}
    for name in names:
        if environ.get(name + FILE_SUFFIX, "").strip():
            try:
                found[name] = setting_text(name, environ)
            except ValueError as error:
                found[name] = error
    return found


def read_setting_files(environ: MutableMapping[str, str]) -> list[str]:
    """Put the text of each setting's file in place of its name, for a command that reads variables alone.

    Returns a line for each mistake.
    """
    stems = [name.removesuffix(FILE_SUFFIX) for name in environ if name.endswith(FILE_SUFFIX)]
    found = texts_in_files([stem for stem in stems if stem.startswith(_BEGINNINGS)], environ)
    for name, text in found.items():
        if isinstance(text, str):
            environ[name] = text
            del environ[name + FILE_SUFFIX]
    return [f"{name} {text}" for name, text in found.items() if isinstance(text, ValueError)]
