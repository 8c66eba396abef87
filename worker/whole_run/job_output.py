"""What a Ray job has left in its log: its action's result, its error, and what the action said."""

import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any, Final

from shared.messages import JsonObject
from worker.platform import clean, mask_secrets, shorten
from worker.plugins.output import PluginOutput, read_output
from worker.plugins.runner import OUTPUT_END, OUTPUT_START, RESULT_END, RESULT_START

MAX_RESULT_BYTES: Final = 1024 * 1024
LOG_WINDOW_BYTES: Final = 12 * MAX_RESULT_BYTES
"""Of the end of a job's log, in which its result is looked for: what is printed after it may be more."""
TRACEBACK: Final = "Traceback (most recent call last):"
LAST_LINES: Final = 6
MAX_TRACEBACK_CHARS: Final = 100_000
MAX_ERROR_CHARS: Final = 2_000
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class JobOutput:
    """Its result, or why there is none; the error at its end; what its action said."""

    result: JsonObject | None = None
    problem: str = ""
    error: str = ""
    said: PluginOutput | None = None


def read_job_output(log: str) -> JobOutput:
    """Read the end of a log; its first character may be cut."""
    said = _between(log, OUTPUT_START, OUTPUT_END)
    output = JobOutput(
        error=error_in(log[-MAX_TRACEBACK_CHARS:]), said=read_output(_parse(said)) if said else None
    )
    text = _between(log, RESULT_START, RESULT_END)
    if text is None:
        left = "more than can be read" if RESULT_END in log else "no result"
        return replace(output, problem=f"its job has left {left}")
    if len(text) > MAX_RESULT_BYTES:
        problem = f"its result has {len(text) / MAX_RESULT_BYTES:.1f} MB, and 1 MB is allowed"
        return replace(output, problem=problem)
    result = _parse(text)
    if not isinstance(result, dict):
        return replace(output, problem="its result is no JSON object")
    return replace(output, result=mask_secrets(result))


def _between(log: str, start: str, end: str) -> str | None:
    """The lines between the last two markers; None without them."""
    last = log.rfind(end)
    first = log.rfind(start, 0, last) if last >= 0 else -1
    return None if first < 0 else log[first + len(start) : last].strip()


def _parse(text: str) -> Any:
    """The JSON; None for what is none, also for NaN and infinities, which Python writes and JSON lacks."""

    def reject(name: str) -> float:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=reject, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def error_in(text: str) -> str:
    """The author's error in the end of a log: what follows the frames of the last traceback, cleaned.

    Without a traceback the last lines are what there is.
    """
    lines = _ANSI.sub("", text).rstrip().splitlines()
    begins = [number for number, line in enumerate(lines) if TRACEBACK in line]
    shown = lines[-LAST_LINES:]
    if begins:
        after = lines[begins[-1] + 1 :]
        first = next((number for number, line in enumerate(after) if line and line[0] not in " \t"), None)
        shown = shown if first is None else after[first:]
    return shorten(clean("\n".join(shown).strip()), MAX_ERROR_CHARS)
