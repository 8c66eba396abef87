"""What stands in the log of a job, and how a follower goes through it."""

from collections.abc import Mapping
from dataclasses import dataclass

END = "end"


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line: `source` is "run" for the run's own messages, else the Ray job that printed it."""

    seq: int
    time: str
    source: str
    level: str
    line: str


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Nothing comes any more: "ended", "stopped", "limit" or "unreachable"."""

    seq: int
    reason: str


def entry_of(fields: Mapping[str, str]) -> LogLine | LogEnd:
    """An entry of the history, or of the channel."""
    seq = int(fields["seq"])
    if fields.get("type") == END:
        return LogEnd(seq, fields["reason"])
    return LogLine(seq, fields["time"], fields["source"], fields["level"], fields["line"])


def id_after(seq: int) -> str:
    """The id of the history behind every entry numbered `seq`: an end that was taken back counts too."""
    return f"{seq}-18446744073709551615"
