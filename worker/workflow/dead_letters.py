"""Messages that could not be accepted: kept whole, their jobs ended, and which may be published again."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from kombu.utils.json import dumps
from pydantic import ValidationError
from redis import Redis

from shared.channels import RETENTION_SECONDS, dead_letters_key
from shared.messages import DeployMessage, Message, StopMessage, TailLogsMessage, ToTaskMessage
from worker.broker.rejections import read_json
from worker.lua import Scripts, redis_time
from worker.runs.store import RunStore
from worker.workflow.validation import readable_job

log = structlog.get_logger(__name__)

PAGE = 100
SMALL_PAGE = 10
"""Letters that are removed at once when all take too much, or shown; each may be large."""
TRIMMED_SHARE = 0.9
"""To what share of their limit the letters are trimmed."""


MESSAGE_TYPES: dict[str, type[Message]] = {
    model.task: model for model in (DeployMessage, ToTaskMessage, TailLogsMessage, StopMessage)
}


class ReplayError(RuntimeError):
    """A dead letter is not replayed: the message says why, and `hint` what that comes from."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def rejected_jobs_key() -> str:
    """Hash: jobs that are FAILED at the backend only because a message of theirs was rejected.

    Their state is `refusing` while the backend is updated, then `refused`, and `replayed` once the message
    was published again.
    """
    return f"{{{dead_letters_key()}}}:jobs"


@dataclass(frozen=True)
class DeadLetter:
    """A message in the dead-letter stream."""

    id: str
    task: str
    body: str
    reason: str
    time: str

    def arguments(self) -> dict[str, Any] | None:
        """The keyword arguments; None when the body is not that of a task, or has positional arguments."""
        parts = self._parts()
        return parts[1] if parts and not parts[0] else None

    @property
    def job(self) -> str | None:
        """The job that the message names, whatever else is wrong with it."""
        parts = self._parts()
        return readable_job(parts[1], parts[0] or ()) if parts else None

    def _parts(self) -> list[Any] | None:
        """Positional and keyword arguments and the embed of a task message; None when the body is not one."""
        parts = read_json(self.body)
        fits = isinstance(parts, list) and len(parts) in (2, 3)
        return parts if fits and isinstance(parts[0], list | None) and isinstance(parts[1], dict) else None


class DeadLetters:
    """The dead-letter stream."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._scripts = Scripts(redis, "worker.workflow")

    def add(
        self, task: str, body: Any, reason: str, *, message_id: str | None = None, job: str | None = None
    ) -> None:
        """Keep a message: the task's name, the body as received, and why it was rejected.

        A second delivery of the same message (`message_id`) is kept once. `job` is the message's job if that
        has no run: a job whose replay is rejected again counts as rejected.
        """
        entry = {
            "task": _storable(task),
            "body": _storable(body) if isinstance(body, str) else body_text(body),
            "reason": _storable(reason),
            "time": datetime.now(UTC).isoformat(),
        }
        seen = dead_letters_key()
        if message_id is not None:
            # The digest includes the content, because a publisher may give all its messages the same id.
            content = "\0".join([message_id, entry["task"], entry["body"]])
            digest = hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()
            seen = f"{{{dead_letters_key()}}}:seen:{digest}"
        fields = [part for pair in entry.items() for part in pair]
        keys = [dead_letters_key(), seen, rejected_jobs_key()]
        self._scripts.run("add_dead_letter", keys, RETENTION_SECONDS, job or "", *fields)

    def all(self) -> Iterator[DeadLetter]:
        """Every letter, oldest first, read page by page because bodies may be large."""
        after = "-"
        while page := self._redis.xrange(dead_letters_key(), after, "+", count=PAGE):
            for id_, fields in page:
                yield _letter(id_, fields)
            after = f"({page[-1][0]}"

    def latest(self, limit: int) -> Iterator[DeadLetter]:
        """The letters that came last, the newest first, read by few because bodies may be large."""
        before = "+"
        while limit > 0:
            page = self._redis.xrevrange(dead_letters_key(), before, "-", count=min(limit, SMALL_PAGE))
            for id_, fields in page:
                yield _letter(id_, fields)
            if len(page) < SMALL_PAGE:
                return
            before, limit = f"({page[-1][0]}", limit - len(page)

    def count(self) -> int:
        """How many there are."""
        return int(self._redis.xlen(dead_letters_key()))

    def get(self, id_: str) -> DeadLetter | None:
        """One letter by its whole id, `milliseconds-number`."""
        if not _is_id(id_):
            return None
        found = self._redis.xrange(dead_letters_key(), id_, id_)
        return _letter(*found[0]) if found else None

    def drop(self, id_: str) -> bool:
        """Delete a letter; False when there is none with that id.

        With the last letter of a rejected job, a replay can no longer open the job.
        """
        letter = self.get(id_)
        if letter is None or not self._redis.xdel(dead_letters_key(), id_):
            return False
        if letter.job is not None and all(other.job != letter.job for other in self.all()):
            self._scripts.run("forget_rejection", [rejected_jobs_key()], letter.job)
        return True

    def trim(self, max_bytes: int, max_age_seconds: float) -> None:
        """Remove letters that are too old, and the oldest while all take too much; one is always kept."""
        too_old = str(int((redis_time(self._redis) - max_age_seconds) * 1000))
        jobs: set[str] = set()
        while page := self._redis.xrange(dead_letters_key(), "-", too_old, count=PAGE):
            jobs |= self._remove(page)
        if self._bytes() > max_bytes:
            # Some more than needed, so that not every letter that comes has another one removed.
            while self._bytes() > max_bytes * TRIMMED_SHARE:
                page = self._redis.xrange(dead_letters_key(), "-", "+", count=SMALL_PAGE + 1)
                if len(page) < 2:
                    break
                jobs |= self._remove(page[:-1])
        rejected = [job for job in jobs if self.is_rejected(job)]
        if rejected:
            for job in set(rejected) - {letter.job for letter in self.all()}:
                self._scripts.run("forget_rejection", [rejected_jobs_key()], job)

    def _bytes(self) -> int:
        return int(self._redis.memory_usage(dead_letters_key()) or 0)

    def _remove(self, page: list[tuple[str, dict[str, str]]]) -> set[str]:
        """Returns the jobs of the letters."""
        self._redis.xdel(dead_letters_key(), *(id_ for id_, _ in page))
        return {job for id_, fields in page if (job := _letter(id_, fields).job) is not None}

    def start_rejecting(self, job: str) -> None:
        """The job is about to be ended at the backend because of a dead letter."""
        self._redis.hsetnx(rejected_jobs_key(), job, "refusing")

    def mark_rejected(self, job: str) -> None:
        """The job is FAILED at the backend: a replay may open it from now on."""
        self._redis.hset(rejected_jobs_key(), job, "refused")

    def is_rejecting(self, job: str) -> bool:
        """Whether a worker began to end the job and has not finished."""
        return bool(self._redis.hget(rejected_jobs_key(), job) == "refusing")

    def is_rejected(self, job: str) -> bool:
        """Whether the job is FAILED only because of a dead letter."""
        return bool(self._redis.hexists(rejected_jobs_key(), job))

    def replay(self, job: str) -> bool:
        """Let the next message of a rejected job open it again; False when it is not (yet) rejected."""
        return bool(self._scripts.run("mark_replayed", [rejected_jobs_key()], job))

    def is_replayed(self, job: str) -> bool:
        """Whether the next message of the job opens it again."""
        return bool(self._redis.hget(rejected_jobs_key(), job) == "replayed")

    def forget(self, job: str) -> None:
        """The job was opened again, or ended by somebody else."""
        self._redis.hdel(rejected_jobs_key(), job)


def publish_again(redis: "Redis", letter: DeadLetter, publish: Callable[[Message], None]) -> Message:
    """Replay a dead letter: `publish` its message, open the job that it had failed, and drop the letter.

    Raises `ReplayError` where that would start nothing, and what `publish` raises.
    """
    letters, message = DeadLetters(redis), _replayable_message(letter)
    opens_job = isinstance(message, DeployMessage | ToTaskMessage)
    if opens_job and RunStore(redis).exists(message.job):
        raise ReplayError(f"job {message.job} has a run already: a replay would start nothing")
    if opens_job and not letters.replay(message.job):
        raise ReplayError(
            f"job {message.job} was not set FAILED because of this message: a replay would not open it",
            "Either the job had ended before, or the backend does not have its end yet.",
        )
    try:
        publish(message)
    except Exception:
        if opens_job:
            letters.mark_rejected(message.job)
        raise
    letters.drop(letter.id)
    return message


def _replayable_message(letter: DeadLetter) -> Message:
    """The validated message of a dead letter; raises `ReplayError` when a worker would reject it again."""
    problem = f"dead letter {letter.id} cannot be replayed"
    model = MESSAGE_TYPES.get(letter.task)
    if model is None:
        raise ReplayError(f"{problem}: its task is none of {', '.join(MESSAGE_TYPES)}")
    kwargs = letter.arguments()
    if kwargs is None:
        raise ReplayError(f"{problem}: its body is no task message with named arguments")
    try:
        return model.model_validate(kwargs)
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(str(part) for part in each["loc"]) for each in error.errors()}))
        raise ReplayError(f"{problem}: it would be rejected again ({wrong})") from None


def _letter(id_: str, fields: dict[str, str]) -> DeadLetter:
    return DeadLetter(id_, *(fields.get(name, "") for name in ("task", "body", "reason", "time")))


def _is_id(text: str) -> bool:
    parts = text.split("-")
    # Redis keeps each half in 64 bits and rejects larger numbers.
    return len(parts) == 2 and all(
        part.isascii() and part.isdigit() and len(part) <= 20 and int(part) < 2**64 for part in parts
    )


def body_text(body: Any) -> str:
    """A message's body that was read, as a dead letter keeps it."""
    # With kombu's encoder, so that dates, UUIDs and decimals that it decoded are written as they came.
    try:
        text: str = dumps(body, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape and UTF-8 cannot hold
        return str(dumps(body))
    return text


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
