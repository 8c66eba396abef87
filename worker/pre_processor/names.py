"""Which room a run waits in: by tenant, agent and release."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote, unquote

from pydantic import AfterValidator

from worker.pre_processor.target import PreProcessor

ROOM_PREFIX = "room:"
"""Members of the live set that are rooms."""


@dataclass(frozen=True)
class RoomName:
    """`tenant` is empty where none is set."""

    tenant: str
    agent: int
    code: str
    version: str

    @classmethod
    def of(cls, tenant: str | None, target: PreProcessor) -> "RoomName":
        """The room of those who wait for `target`."""
        return cls(tenant or "", target.agent, target.code, target.version)

    @property
    def key(self) -> str:
        """The name as text, in messages and keys; no part of it can be taken for another."""
        return f"{_quoted(self.tenant)}:{self.agent}:{_quoted(self.code)}@{_quoted(self.version)}"

    @classmethod
    def parse(cls, key: str) -> "RoomName":
        """The inverse of `key`."""
        tenant, agent, release = key.split(":")
        code, version = release.split("@")
        return cls(unquote(tenant), int(agent), unquote(code), unquote(version))

    @property
    def target(self) -> PreProcessor:
        """What is waited for; its config is not part of the name."""
        return PreProcessor(self.code, self.version, {}, self.agent)

    @property
    def member(self) -> str:
        """The room among the live."""
        return f"{ROOM_PREFIX}{self.key}"


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _is_key(value: str) -> str:
    RoomName.parse(value)  # which raises ValueError
    return value


RoomKey = Annotated[str, AfterValidator(_is_key)]
"""The name of a room as text, in messages."""
