"""The table of points at which a worker is killed, by the kind of the run.

A point is `CALL:before` or `CALL:after`, where CALL is named by `crash_injection`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The run that is under way when the worker is killed."""

    DEPLOY = "deploy"
    WAITING_DEPLOY = "deploy that waits for capacity"
    FILE = "to_task by file"
    INFERENCE = "to_task by inference, its pre-processor absent"
    FAILED_PRE_PROCESSOR = "to_task by inference, its pre-processor's deployment fails"
    STOP = "to_task that is stopped while it waits for its pre-processor"
    RETRY = "to_task that annotates the failed tasks of an ended run"
    WHOLE = "to_task that runs whole, as a Ray job"
    WHOLE_STOP = "to_task that is stopped while its Ray job runs"


@dataclass(frozen=True)
class KillPoint:
    """A point, and what else happens to the run."""

    kind: Kind
    call: str
    when: str
    of_pre_processor: bool = False
    """The call is about the pre-processor (its waiting list or deployment) and not about the run's job."""
    in_short_test: bool = False
    """The point is part of the short test, too."""
    messages_lost: bool = False
    """All messages are deleted from the queues after the kill, so that the sweep has to find the run."""
    late_successor: bool = False
    """The next worker starts so late that several timeouts have expired, which it meets in any order."""

    @property
    def limits_tenants(self) -> bool:
        """Whether tenants have limited shares."""
        return " slot of " in self.call

    @property
    def point(self) -> str:
        return f"{self.call}:{self.when}"

    def __str__(self) -> str:
        text = f"{self.kind.name.lower()}: {self.point}"
        text += " (its pre-processor)" * self.of_pre_processor
        text += ", messages lost" * self.messages_lost
        return text + ", late successor" * self.late_successor


def _points(
    kind: Kind,
    table: str,
    *,
    of_pre_processor: bool = False,
    messages_lost: bool = False,
    late_successor: bool = False,
) -> Iterator[KillPoint]:
    """One call a line, after its marks: `<` before the call, `>` after it, `*` also in the short test."""
    for line in filter(None, map(str.strip, table.splitlines())):
        marks, _, call = line.partition(" ")
        for mark, when in (("<", "before"), (">", "after")):
            if mark in marks:
                in_short_test = f"{mark}*" in marks
                yield KillPoint(
                    kind, call.strip(), when, of_pre_processor, in_short_test, messages_lost, late_successor
                )


# Both actions share the code that accepts a message, runs steps and reports the end: this table has all of
# its points, the others have some.
DEPLOY = """
<>   accept
<>   publish deploy.initialize
<>   claim_step deploy.initialize
<>   mark_running
<>   acknowledge_report
<>   update_job
<>   publish deploy.capacity_gate
>    claim_step deploy.capacity_gate
>    update_state plan
<>   update_state capacity
<>   end_step deploy.capacity_gate
<>   publish deploy.serve_run
>    claim_step deploy.serve_run
>    update_state submission
<>   submit
>    update_state submitted+submitted_at
<>   publish deploy.await_running
>    claim_step deploy.await_running
<>*  reschedule_step deploy.await_running
<>   retry deploy.await_running
<>   publish deploy.register
>    claim_step deploy.register
>    update_state register_attempts
<>*  create_serve_application
<>   update_state registered
<>*  finish
<>   claim_report
<>*  update_job end
<>   mark_reported
<>   webhook claim
<>   webhook post
<>   webhook end_attempt
"""

WAITING_DEPLOY = """
<>   capacity look
<>   update_state waits_since+reported_wait
<>   reschedule_step deploy.capacity_gate
<>   retry deploy.capacity_gate
<>   update_state capacity
<>   capacity leave
"""

FILE = """
<>   accept
<>   publish to_task.initialize
<>   publish to_task.prepare
>    claim_step to_task.prepare
>    get_project
<>   end_step to_task.prepare
<>   publish to_task.fetch_tasks
>    claim_step to_task.fetch_tasks
>    list_tasks
<>   task_index commit
<>   ledger next_chunks
<>   publish to_task.annotate
<>*  end_step to_task.fetch_tasks
>    claim_step to_task.annotate
<>   ledger mark_published
<>*  annotate_task_data
<>*  ledger record
<>   ledger complete_chunk
<>   publish to_task.finalize
>    claim_step to_task.finalize
<>   finish
<>   update_job end
<>   mark_reported
"""

SHARES = """
<>   take slot of run
<>   take slot of chunk
<>   free slot of chunk
<>   free slot of run
"""
"""With one chunk and one run of a tenant at a time."""

RETRY = """
>    claim_step to_task.prepare
<>   task_index commit
<>   ledger record
<>   finish
<>   mark_reported
"""

INFERENCE = """
<>   publish pre_processor.detect
>    update_state pre_processor
<>   publish pre_processor.dispatch
>    claim_step pre_processor.dispatch
<>   publish to_task.fetch_tasks
<>   infer
>    ledger record
"""

WAITLIST = """
<>   waitlist join
<>   publish pre_processor.await_ready
<>   check_feasibility
<>*  waitlist mark_sent
<*>* run_plugin
<>   waitlist mark_known
<>   waitlist claim_poll
<>   waitlist end_poll
<>   retry pre_processor.await_ready
<>   waitlist resume
"""

FAILED_PRE_PROCESSOR = """
<>*  finish
<>   update_job end
"""

STOP = """
<>*  finish
<>   update_job end
"""

WHOLE = """
<>   publish whole_run.submit
>    claim_step whole_run.submit
<>   update_state ray_job+ray_job_at
<>*  submit_job
<>   update_state ray_job_submitted
<>   publish whole_run.await_end
>    claim_step whole_run.await_end
<>   reschedule_step whole_run.await_end
<>   retry whole_run.await_end
<>*  finish
<>   update_job end
"""

WHOLE_STOP = """
<>*  finish
<>   stop_job
"""

DEPLOY_MESSAGES_LOST = """
>    publish deploy.initialize
>*   end_step deploy.capacity_gate
>    retry deploy.await_running
>    finish
<    update_job end
"""

FILE_MESSAGES_LOST = """
>    publish to_task.initialize
>    claim_step to_task.fetch_tasks
>*   publish to_task.annotate
>    ledger complete_chunk
>    publish to_task.finalize
"""

WAITLIST_MESSAGES_LOST = """
>    publish pre_processor.await_ready
>*   retry pre_processor.await_ready
"""

WAITLIST_LATE_SUCCESSOR = """
>    waitlist join
>    waitlist mark_sent
>    run_plugin
>    waitlist mark_known
"""


def all_points() -> list[KillPoint]:
    """The whole table."""
    return [
        *_points(Kind.DEPLOY, DEPLOY),
        *_points(Kind.WAITING_DEPLOY, WAITING_DEPLOY),
        *_points(Kind.FILE, FILE),
        *_points(Kind.FILE, SHARES),
        *_points(Kind.RETRY, RETRY),
        *_points(Kind.INFERENCE, INFERENCE),
        *_points(Kind.INFERENCE, WAITLIST, of_pre_processor=True),
        *_points(Kind.FAILED_PRE_PROCESSOR, FAILED_PRE_PROCESSOR),
        *_points(Kind.FAILED_PRE_PROCESSOR, "<> waitlist remove", of_pre_processor=True),
        *_points(Kind.STOP, STOP),
        *_points(Kind.WHOLE, WHOLE),
        *_points(Kind.WHOLE_STOP, WHOLE_STOP),
        *_points(Kind.WHOLE, "> submit_job", messages_lost=True),
        *_points(Kind.DEPLOY, DEPLOY_MESSAGES_LOST, messages_lost=True),
        *_points(Kind.WAITING_DEPLOY, "> retry deploy.capacity_gate", messages_lost=True),
        *_points(Kind.FILE, FILE_MESSAGES_LOST, messages_lost=True),
        *_points(Kind.INFERENCE, "> publish to_task.fetch_tasks", messages_lost=True),
        *_points(Kind.INFERENCE, WAITLIST_MESSAGES_LOST, of_pre_processor=True, messages_lost=True),
        *_points(Kind.STOP, "> finish", messages_lost=True),
        *_points(Kind.STOP, "> webhook claim"),
        *_points(Kind.INFERENCE, WAITLIST_LATE_SUCCESSOR, of_pre_processor=True, late_successor=True),
    ]
