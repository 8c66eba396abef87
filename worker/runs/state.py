"""The state of a run: what its steps have found out, typed by its workflow, stored field by field as JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self, TypeVar

from worker.platform import mask_secrets

T = TypeVar("T")

STORED: Final = "stored"
"""The key of a field's metadata."""


@dataclass(frozen=True)
class StoredField:
    """How a field lies in Redis: under which name, and as which JSON. `None` is always stored as null."""

    name: str
    decode: Callable[[Any], object] | None = None
    encode: Callable[[Any], object] | None = None


def stored_field(
    name: str,
    default: T,
    *,
    decode: Callable[[Any], T] | None = None,
    encode: Callable[[Any], object] | None = None,
) -> T:
    """A field of a `RunState` that is stored under another name than its own, or whose value is no JSON."""
    return field(default=default, metadata={STORED: StoredField(name, decode, encode)})


def stored_json(value: object) -> str:
    """JSON that takes little memory: an escaped character of Korean is twice as long as the character."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        return json.dumps(value, separators=(",", ":"))
    return text


@dataclass(frozen=True)
class RunState:
    """The base class of states. A subclass is a frozen dataclass all of whose fields have defaults.

    Workers of several versions read the stored fields: a field that is not stored has its default, one that
    this version does not know is ignored. A name keeps its meaning for ever.
    """

    @classmethod
    def from_stored(cls, stored: Mapping[str, str]) -> Self:
        """Read the state from JSON texts by stored name."""
        values: dict[str, object] = {}
        for name, how in _stored_fields(cls).items():
            if how.name in stored:
                value = json.loads(stored[how.name])
                values[name] = how.decode(value) if how.decode and value is not None else value
        return cls(**values)

    def changes(self, after: Self) -> dict[str, str]:
        """JSON texts by stored name of the fields that differ in `after`, without secrets."""
        texts: dict[str, str] = {}
        for name, how in _stored_fields(type(after)).items():
            value = getattr(after, name)
            if value != getattr(self, name):
                content = how.encode(value) if how.encode and value is not None else value
                # It may hold the answer of a service, which may repeat a token that was sent.
                texts[how.name] = stored_json(mask_secrets(content))
        return texts


@dataclass(frozen=True)
class StoredState(RunState):
    """The state of a run of whichever workflow, as it was read."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """JSON by stored name."""

    @classmethod
    def from_stored(cls, stored: Mapping[str, str]) -> Self:
        """Keep the texts."""
        return cls(stored)


def _stored_fields(state: type[RunState]) -> dict[str, StoredField]:
    return {each.name: each.metadata.get(STORED, StoredField(each.name)) for each in fields(state)}
