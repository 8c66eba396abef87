"""Redis keys of a run's ledger. They expire with the run, and nothing is written to them after its end."""

from shared.channels import job_key
from worker.runs.store import RunStore


def catalogue_key(job: str) -> str:
    """Hash: how far the ids are collected, how many chunks they make, which was handed out last."""
    return f"{job_key(job)}:to_task:catalogue"


def chunks_key(job: str) -> str:
    """Hash: a chunk's ids, joined by commas, under its number; gone when the chunk is done."""
    return f"{job_key(job)}:to_task:chunks"


def seen_key(job: str) -> str:
    """Set: ids and links met while pages are read; deleted after the last page."""
    return f"{job_key(job)}:to_task:seen"


def done_key(job: str) -> str:
    """Bitmap: one bit a task, by its position."""
    return f"{job_key(job)}:to_task:done"


def done_chunks_key(job: str) -> str:
    """Set: numbers of the chunks that are done."""
    return f"{job_key(job)}:to_task:done_chunks"


def open_key(job: str) -> str:
    """Sorted set: chunks that are handed out, by when; by infinity once their message is out."""
    return f"{job_key(job)}:to_task:open"


def failures_key(job: str) -> str:
    """List: the first failure records."""
    return f"{job_key(job)}:to_task:failures"


def attempts_key(job: str) -> str:
    """Hash: position of an undone task to the number of attempts that count."""
    return f"{job_key(job)}:to_task:attempts"


def tickets_key(job: str) -> str:
    """Hash: position of an undone task to the ticket of its deferred inference."""
    return f"{job_key(job)}:to_task:tickets"


ALL = (
    catalogue_key,
    chunks_key,
    seen_key,
    done_key,
    done_chunks_key,
    open_key,
    failures_key,
    attempts_key,
    tickets_key,
)


def own_all(store: RunStore, job: str) -> None:
    """Let all of them expire with the run; to be called before the first of them is written."""
    store.owns(job, *(key(job) for key in ALL))
