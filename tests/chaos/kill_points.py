"""The table: every point at which a worker is killed, by what the run is about.

A point is `what:before` or `what:after`; its effect is at most once where the contract says so, also there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What runs when the worker dies."""

    DEPLOY = "deploy"
    FILE = "to_task by file"
    INFERENCE = "to_task by inference, its pre-processor absent"
    REJECTED = "to_task by inference, its pre-processor's deployment fails"
    STOP = "to_task that is stopped while it waits for its pre-processor"


@dataclass(frozen=True)
class KillPoint:
    """`about`: whose message or request the point belongs to; `kept`: in the short form, too."""

    kind: Kind
    what: str
    when: str
    of_plugin: bool = False
    kept: bool = False
    lost: bool = False
    """Every message is taken out of the queues by hand after the death: the sweep has to find the run."""
    late: bool = False
    """There is no worker for a while: what is due by then is due at once, in any order."""

    @property
    def point(self) -> str:
        return f"{self.what}:{self.when}"

    def __str__(self) -> str:
        text = f"{self.kind.name.lower()}: {self.point}" + (" (its deployment)" if self.of_plugin else "")
        return text + ", messages lost" * self.lost + ", the next worker comes late" * self.late


def _points(
    kind: Kind, table: str, *, of_plugin: bool = False, lost: bool = False, late: bool = False
) -> Iterator[KillPoint]:
    """A line a point; `<` before it, `>` after it, `*` on the kept ones."""
    for line in filter(None, map(str.strip, table.splitlines())):
        marks, _, what = line.partition(" ")
        for mark, when in (("<", "before"), (">", "after")):
            if mark in marks:
                kept = f"{mark}*" in marks
                yield KillPoint(kind, what.strip(), when, of_plugin, kept, lost, late)


# The message, the steps, the end and its report are the same machine for both actions.
DEPLOY = """
<>   accept
<>   send deploy.initialize
<>   begin deploy.initialize
<>   start
<>   update_job
<>   send deploy.capacity_gate
>    begin deploy.capacity_gate
>    update_state plan
<>   update_state capacity
<>   send deploy.serve_run
>    begin deploy.serve_run
>    update_state submission
<>   submit
>    update_state submitted
<>   send deploy.await_running
>    begin deploy.await_running
<>*  announce deploy.await_running
<>   retry deploy.await_running
<>   send deploy.register
>    begin deploy.register
>    update_state register_attempts
<>*  create_serve_application
<>   update_state registered
<>*  finish
<>   send runs.report
<>*  update_job end
<>   mark_reported
"""

FILE = """
<>   accept
<>   send to_task.initialize
<>   send to_task.prepare
>    begin to_task.prepare
>    get_project
<>*  send to_task.fetch_tasks
>    begin to_task.fetch_tasks
>    list_tasks
<>   catalogue commit
<>   send to_task.spread
>    begin to_task.spread
<>   ledger next_chunks
<>   send to_task.annotate
<>   ledger mark_published
>    begin to_task.annotate
<>*  annotate_task_data
<>*  ledger record
<>   ledger complete_chunk
<>   send to_task.finalize
>    begin to_task.finalize
<>   finish
<>   update_job end
<>   mark_reported
"""

INFERENCE = """
<>   send pre_processor.detect
>    update_state pre_processor
<>   send pre_processor.dispatch
>    begin pre_processor.dispatch
<>   send to_task.fetch_tasks
<>   infer
>    ledger record
"""

WAITLIST = """
<>   room join
<>   send pre_processor.await_ready
<>*  room mark_sent
<*>* run_plugin
<>   room mark_known
<>   room claim_poll
<>   room end_poll
<>   retry pre_processor.await_ready
<>   room leave
"""

REJECTED = """
<>*  finish
<>   update_job end
"""

STOP = """
<>*  finish
<>   send runs.report
<>   update_job end
"""


LOST_OF_DEPLOY = """
>    send deploy.initialize
>*   send deploy.serve_run
>    retry deploy.await_running
>    finish
<    update_job end
"""

LOST_OF_FILE = """
>    send to_task.initialize
>    begin to_task.fetch_tasks
>*   send to_task.annotate
>    ledger complete_chunk
>    send to_task.finalize
"""

LOST_OF_WAITLIST = """
>    send pre_processor.await_ready
>*   retry pre_processor.await_ready
"""


LATE_OF_WAITLIST = """
>    room join
>    room mark_sent
>    run_plugin
>    room mark_known
"""


def all_points() -> list[KillPoint]:
    """The whole table."""
    return [
        *_points(Kind.DEPLOY, DEPLOY),
        *_points(Kind.FILE, FILE),
        *_points(Kind.INFERENCE, INFERENCE),
        *_points(Kind.INFERENCE, WAITLIST, of_plugin=True),
        *_points(Kind.REJECTED, REJECTED),
        *_points(Kind.REJECTED, "<> room leave", of_plugin=True),
        *_points(Kind.STOP, STOP),
        *_points(Kind.DEPLOY, LOST_OF_DEPLOY, lost=True),
        *_points(Kind.FILE, LOST_OF_FILE, lost=True),
        *_points(Kind.INFERENCE, "> send to_task.fetch_tasks", lost=True),
        *_points(Kind.INFERENCE, LOST_OF_WAITLIST, of_plugin=True, lost=True),
        *_points(Kind.STOP, "> send runs.report", lost=True),
        *_points(Kind.INFERENCE, LATE_OF_WAITLIST, of_plugin=True, late=True),
    ]


def in_waves(points: Iterable[KillPoint], size: int) -> list[list[KillPoint]]:
    """As many at once as there are sites."""
    every = list(points)
    return [every[start : start + size] for start in range(0, len(every), size)]
