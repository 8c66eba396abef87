"""What plugin code says of itself while it runs: messages, progress and metrics for its run.

It is collected in the plugin's process and goes to the worker with the reply of the call.
"""

import json
import math
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from shared.messages import JsonObject

if TYPE_CHECKING:
    from worker.plugins.requests import ActionRequest

MAX_ENTRIES, MAX_CHARS = 1_000, 256 * 1024
"""Of one call's entries, the JSON of all of them together; further ones are counted."""
MAX_NAMES = 100
"""Of one call's steps with progress, and of its metrics."""
MESSAGE = "message"
LEVELS = frozenset({"debug", "info", "success", "warning", "danger", "error", "critical"})
DEFAULT_STEP = "plugin"
"""The step of progress and metrics for which the author names none."""

Name = Annotated[str, StringConstraints(max_length=100)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class OutputEntry(BaseModel):
    """A line of the run's log; the backend gets it as an entry of this `event`."""

    model_config = ConfigDict(extra="ignore")

    event: Name
    data: JsonObject
    level: Name = "info"
    step: Name = ""

    @property
    def text(self) -> str:
        """The line of the log: a message's content, or the event with its data."""
        content = self.data.get("content")
        if isinstance(content, str):
            return content
        return f"{self.event} {json.dumps(self.data, ensure_ascii=False)}"


class PluginOutput(BaseModel):
    """What one call said: entries in their order, the newest percent of each step, the newest metrics."""

    model_config = ConfigDict(extra="ignore")

    entries: list[OutputEntry] = Field(default_factory=list, max_length=MAX_ENTRIES + 1)
    progress: dict[Name, Finite] = Field(default_factory=dict, max_length=MAX_NAMES)
    metrics: dict[Name, dict[Name, Finite]] = Field(default_factory=dict, max_length=MAX_NAMES)


OnOutput = Callable[["ActionRequest", PluginOutput], None]
"""Called by a host with what a call said, in the thread of the call."""


def ignore_output(request: "ActionRequest", output: PluginOutput) -> None:
    """`OnOutput` where nobody listens."""


def read_output(given: Any) -> PluginOutput | None:
    """The output in a reply; None for none, and for one that the author's code has spoilt."""
    if not given:
        return None
    try:
        return PluginOutput.model_validate(given)
    except ValidationError:
        return None


class OutputCollector:
    """Collects what the code of one call says. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[JsonObject] = []
        self._progress: dict[str, float] = {}
        self._metrics: dict[str, dict[str, float]] = {}
        self._chars = 0
        self._left_out = 0

    def add(self, event: str, data: Mapping[str, Any], level: str = "info", step: str | None = None) -> None:
        """Add an entry; what is no JSON in `data` is written as text."""
        try:
            text = json.dumps(dict(data), allow_nan=False, default=str)
        except (ValueError, TypeError, RecursionError):
            text = json.dumps({str(name): str(value) for name, value in data.items()})
        level = level if level in LEVELS else "info"
        with self._lock:
            self._chars += len(text)
            if len(self._entries) >= MAX_ENTRIES or self._chars > MAX_CHARS:
                self._left_out += 1
                return
            entry = {"event": str(event)[:100], "data": json.loads(text), "level": level}
            self._entries.append({**entry, "step": (step or "")[:100]})

    def message(self, text: str, level: str = "info", step: str | None = None) -> None:
        """Add a message for users."""
        self.add(MESSAGE, {"content": text}, level, step)

    def set_progress(self, current: float, total: float, step: str | None = None) -> None:
        """Set how far a step is. Nothing is known of one whose `total` is zero."""
        percent = current * 100 / total if total else math.nan
        if not math.isfinite(percent):
            return
        with self._lock:
            name = (step or DEFAULT_STEP)[:100]
            if name in self._progress or len(self._progress) < MAX_NAMES:
                self._progress[name] = round(min(max(percent, 0.0), 100.0), 2)

    def set_metrics(self, metrics: Mapping[str, Any], step: str | None = None) -> None:
        """Set metrics of a step; those that are no finite number become an entry."""
        numbers = {str(name)[:100]: float(value) for name, value in metrics.items() if _is_number(value)}
        others = {str(name): value for name, value in metrics.items() if not _is_number(value)}
        with self._lock:
            known = self._metrics.setdefault((step or DEFAULT_STEP)[:100], {})
            for name, value in numbers.items():
                if name in known or sum(map(len, self._metrics.values())) < MAX_NAMES:
                    known[name] = value
        if others:
            self.add("metrics", others, step=step)

    def to_json(self) -> JsonObject | None:
        """The fields of a `PluginOutput`; None when nothing was said."""
        with self._lock:
            entries = list(self._entries)
            if self._left_out:
                text = (
                    f"{self._left_out} further entries of the plugin were left out: a call may make at most"
                )
                text += f" {MAX_ENTRIES} with {MAX_CHARS // 1024} KB together"
                entries.append({"event": MESSAGE, "data": {"content": text}, "level": "warning", "step": ""})
            metrics = {step: dict(values) for step, values in self._metrics.items() if values}
            output: JsonObject = {"entries": entries, "progress": dict(self._progress), "metrics": metrics}
        return output if any(output.values()) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
