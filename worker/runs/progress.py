"""Progress in the platform's shape: steps with proportions, an overall that never falls, metrics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis

from shared.channels import events_channel, job_key
from shared.messages import JsonObject, ToTaskMessage, ToTaskMethod
from worker.lua import redis_time
from worker.runs.keys import outbox_key, progress_key, run_key
from worker.runs.model import RunMessage
from worker.runs.scripts import run_scripts

SECONDS_BETWEEN_PATCHES = 1.0
"""The least between two reports of a run's progress; the next one has all that changed meanwhile."""

MAX_FIELDS = 200
"""Of a run's progress and metrics, beyond which plugin code adds no further names."""

_PLUGIN_PROGRESS, _PLUGIN_METRIC = "plugin_progress:", "plugin_metric:"
"""Prefixes of the fields that plugin code sets: a step, and a step with a metric's name as JSON."""

Proportions = Mapping[str, int]
"""Steps in their order, each with its share of the whole in percent; the shares add up to 100."""

DEPLOY: Proportions = {"initialize": 10, "deploy": 75, "register": 15}
TO_TASK_FILE: Proportions = {
    "initialize": 10, "prepare": 5, "fetch_tasks": 10, "annotate_task_data": 70, "finalize": 5,
}  # fmt: skip
TO_TASK_INFERENCE: Proportions = {
    "initialize": 10, "prepare": 20, "fetch_tasks": 10, "annotate_task_data": 55, "finalize": 5,
}  # fmt: skip


def proportions_of(message: RunMessage) -> Proportions:
    """The steps of a run (platform-api: `progress_record`)."""
    if not isinstance(message, ToTaskMessage):
        return DEPLOY
    return TO_TASK_FILE if message.params.method is ToTaskMethod.FILE else TO_TASK_INFERENCE


@dataclass(frozen=True)
class Snapshot:
    """What the backend gets: `progress_record` and `metrics_record`."""

    progress: JsonObject
    metrics: JsonObject


class Progress:
    """Percent by step and metrics of runs, in Redis."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._scripts = run_scripts(redis)

    def set(self, job: str, proportions: Proportions, step: str, percent: float) -> bool:
        """Store and publish that `step` is done to `percent` and earlier steps entirely.

        True when the caller is to send the report, in `SECONDS_BETWEEN_PATCHES`.
        """
        keys = [progress_key(job), job_key(job), run_key(job), outbox_key()]
        shares = [part for share in proportions.items() for part in share]
        place = list(proportions).index(step) + 1
        percent_text = f"{round(min(percent, 100.0), 2):g}"
        channel = events_channel(job)
        return bool(
            self._scripts.run(
                "set_progress", keys, job, channel, SECONDS_BETWEEN_PATCHES, place, percent_text, *shares
            )
        )

    def set_metrics(self, job: str, step: str, metrics: Mapping[str, float]) -> bool:
        """Replace and publish the metrics of `step`, unless the run has ended; true as for `set`."""
        keys = [progress_key(job), run_key(job), outbox_key()]
        event = json.dumps({"type": "metrics", "step": step, "metrics": dict(metrics)})
        field, text, channel = f"metrics:{step}", json.dumps(dict(metrics)), events_channel(job)
        return bool(
            self._scripts.run("set_metrics", keys, field, text, job, channel, event, SECONDS_BETWEEN_PATCHES)
        )

    def set_plugin_values(
        self, job: str, progress: Mapping[str, float], metrics: Mapping[str, Mapping[str, float]]
    ) -> bool:
        """Store and publish what plugin code reports: percent by step, metrics by step; true as for `set`.

        A step of the run itself keeps what the run says of it.
        """
        values: list[str] = []
        for step, percent in progress.items():
            text = f"{percent:g}"
            event = json.dumps({"type": "progress", "step": step, "percent": percent})
            values += (f"{_PLUGIN_PROGRESS}{step}", text, f'{event[:-1]}, "overall": ')
        for step, numbers in metrics.items():
            event = json.dumps({"type": "metrics", "step": step, "metrics": dict(numbers)})
            for name, value in numbers.items():
                values += (f"{_PLUGIN_METRIC}{json.dumps([step, name])}", json.dumps(value), event)
                event = ""
        keys = [progress_key(job), job_key(job), run_key(job), outbox_key()]
        limits = SECONDS_BETWEEN_PATCHES, MAX_FIELDS
        return bool(self._scripts.run("set_plugin_values", keys, job, events_channel(job), *limits, *values))

    def snapshot(self, job: str, proportions: Proportions, *, is_complete: bool = False) -> Snapshot:
        """The records as they are now; `is_complete`: the run has succeeded."""
        stored = self._redis.hgetall(progress_key(job))
        overall = float(self._redis.hget(job_key(job), "overall") or 0)
        now = redis_time(self._redis)
        return self.snapshot_of(stored, overall, now, proportions, is_complete=is_complete)

    @staticmethod
    def snapshot_of(
        stored: Mapping[str, str],
        overall: float,
        now: float,
        proportions: Proportions,
        *,
        is_complete: bool = False,
    ) -> Snapshot:
        """The records of what was stored of the progress; `overall` is the public record's."""
        percents = {name: float(stored.get(name, 0.0)) for name in proportions}
        started = [name for name in proportions if name in stored]
        current = started[-1] if started else next(iter(proportions))
        for name in list(proportions)[: list(proportions).index(current)]:
            percents[name] = 100.0
        if is_complete:
            percents = dict.fromkeys(proportions, 100.0)
            current = list(proportions)[-1]
        since = stored.get(f"since:{current}")
        left = None if is_complete else _time_left(percents[current], since, int(now))
        order = {name: position for position, name in enumerate(proportions, start=1)}
        steps = {
            name: {
                "proportion": share,
                "order": order[name],
                "percent": percents[name],
                "time_remaining": left if name == current else None,
            }
            for name, share in proportions.items()
        }
        for name, value in sorted(stored.items()):
            step = name.removeprefix(_PLUGIN_PROGRESS)
            if step != name and step not in steps:
                place = {"proportion": 0, "order": len(steps) + 1}
                steps[step] = {**place, "percent": float(value), "time_remaining": None}
        now_at = {
            "overall": max(_overall(proportions, percents), overall),
            "step": current,
            "percent": percents[current],
            "time_remaining": left,
            "order": order[current],
        }
        prefix = "metrics:"
        metrics: dict[str, JsonObject] = {}
        for name, value in stored.items():
            if name.startswith(_PLUGIN_METRIC):
                step, metric = json.loads(name.removeprefix(_PLUGIN_METRIC))
                metrics.setdefault(step, {})[metric] = json.loads(value)
        for name, value in stored.items():
            if name.startswith(prefix):
                metrics.setdefault(name.removeprefix(prefix), {}).update(json.loads(value))
        return Snapshot(
            progress={"record": {"steps": steps}, "current_progress": now_at},
            metrics={"record": {"steps": metrics}},
        )


def _overall(proportions: Proportions, percents: Mapping[str, float]) -> float:
    return round(sum(share * percents[name] for name, share in proportions.items()) / 100, 2)


def _time_left(percent: float, since: str | None, now: int) -> float | None:
    """Seconds, from the pace of the step so far; None before there is a pace."""
    if since is None or not 0 < percent < 100:
        return None
    elapsed = now - int(since)
    return round(elapsed * (100 - percent) / percent, 1) if elapsed > 0 else None
