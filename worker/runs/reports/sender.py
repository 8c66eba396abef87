"""Sends the reports of jobs, and to the webhook their ends, from threads of its own, each when it is due."""

import heapq
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import structlog

from worker.blame import INFRASTRUCTURE_ERRORS, retry_after_seconds
from worker.per_process import RecentlyUsed
from worker.platform import ClientError, clean
from worker.runs.bulkhead import backoff
from worker.runs.model import UnreadableRunError
from worker.runs.reports.outbox import DueJobs
from worker.runs.reports.reporter import (
    JobsApi,
    LeaseLostError,
    give_up_rejected_end,
    report,
    report_unreadable,
)
from worker.runs.runs import Runs

log = structlog.get_logger(__name__)

MAX_THREADS = 32
MAX_THREADS_PER_TENANT = 16
"""A backend that hangs for one tenant leaves threads to the others."""
IDLE_SECONDS = 10.0
"""A thread that had nothing to do for so long ends."""
LEASE_LOST_SECONDS = 1.0
_left_to_newer: RecentlyUsed[str, bool] = RecentlyUsed()
"""Jobs of which was logged that their reports are left to newer workers."""
INFRASTRUCTURE_RETRY_SECONDS = 1.0


class TenantBusyError(Exception):
    """So many threads report to the backend of this tenant that another one is kept for the others."""


@dataclass(order=True)
class PendingReport:
    """A job of which this process is to send something at `due`, by the monotonic clock."""

    due: float
    number: int
    job: str = field(compare=False)
    attempt: int = field(compare=False, default=0)
    """How often in a row the receiver has not taken it."""


@dataclass(frozen=True)
class NextAttempt:
    """It is to be sent again in `delay` seconds."""

    delay: float
    attempt: int = 0
    """How often in a row the backend has not taken it."""


def send_report(
    job: str, attempt: int, runs: Runs, backend_of: Callable[[str | None], JobsApi]
) -> NextAttempt | None:
    """Report a job once; what is to follow. `attempt`: how often in a row the backend has not taken it."""
    try:
        wait = _report(job, runs, backend_of)
        return None if wait is None else NextAttempt(wait)
    except TenantBusyError:
        return NextAttempt(0.0, attempt)  # its tenant is known now, so it is held until a thread is free
    except LeaseLostError:
        return NextAttempt(LEASE_LOST_SECONDS, attempt)
    except INFRASTRUCTURE_ERRORS as error:
        log.warning("report put off", job=job, error_type=type(error).__name__)
        return NextAttempt(INFRASTRUCTURE_RETRY_SECONDS, attempt)
    except Exception as error:  # of any kind: no report may end the reports of this process
        return _postponed(job, attempt, runs, error)


def _report(job: str, runs: Runs, backend_of: Callable[[str | None], JobsApi]) -> float | None:
    try:
        return report(job, runs, backend_of)
    except UnreadableRunError as error:
        if runs.is_lost(job, error):
            report_unreadable(job, runs, backend_of(None))
        else:
            # It stays in the outbox, where all workers find it every few seconds.
            if _left_to_newer.get(job) is None:
                _left_to_newer[job] = True
                log.warning("report of a newer release left to newer workers", job=job)
        return None


def _postponed(job: str, attempt: int, runs: Runs, error: Exception) -> NextAttempt | None:
    countdown = backoff(attempt, runs.timing.max_countdown)
    try:
        if isinstance(error, ClientError):
            if give_up_rejected_end(job, error, runs):
                return None
            countdown = max(countdown, retry_after_seconds(error) or 0.0)
            log.warning("report retry scheduled", job=job, error=clean(str(error)), attempt=attempt)
        else:
            log.error("report failed", job=job, error_type=type(error).__name__, exc_info=error)
        runs.outbox.postpone(job, countdown)
    except INFRASTRUCTURE_ERRORS as unavailable:
        log.warning("report put off", job=job, error_type=type(unavailable).__name__)
    return NextAttempt(countdown, attempt + 1)


class JobSender:
    """Sends what is due of the jobs that are added, from threads of its own, which run while there is work.

    A job stays in its list in Redis until then, so that another worker does it when this process ends.
    """

    def __init__(self, due_jobs: DueJobs, name: str, max_threads: int) -> None:
        """`name`: of what is sent, in the plural."""
        self._due_jobs = due_jobs
        self._name = name
        self._max_threads = max_threads
        self._change = threading.Condition()
        self._numbers = itertools.count()
        self._heap: list[PendingReport] = []
        self._pending: dict[str, PendingReport] = {}
        self._sending: dict[str, float | None] = {}
        """Jobs that are being sent, with the time of the next attempt if they were added meanwhile."""
        self._threads = 0
        self._idle = 0
        self._timer_waits = False

    def add(self, job: str, delay: float = 0.0) -> None:
        """Send what is due of `job` in `delay` seconds, or earlier if that was asked for already."""
        with self._change:
            self._add(job, time.monotonic() + delay)

    def take_over(self) -> None:
        """Send at once what another worker has left behind. No line of the log says so: there may be nothing
        to send yet, and the next look finds the same."""
        for job in self._due_jobs.take_over():
            self.add(job, 0.0)

    def hand_over(self) -> None:
        """This process is about to end: other workers send what is left."""
        with self._change:
            now = time.monotonic()
            delays = {job: max(0.0, pending.due - now) for job, pending in self._pending.items()}
        self._due_jobs.hand_over(delays)

    def _send(self, pending: PendingReport) -> NextAttempt | None:
        """Send it; what is to follow."""
        raise NotImplementedError

    def _may_send(self, pending: PendingReport) -> bool:  # noqa: ARG002 - for subclasses
        """Whether what is due may be sent now; if not, the subclass adds it again. Called under the lock."""
        return True

    def _add(self, job: str, due: float, attempt: int | None = None) -> None:
        if job in self._sending:
            added = self._sending[job]
            self._sending[job] = due if added is None else min(added, due)
            return
        known = self._pending.get(job)
        if known is not None and known.due <= due:
            return
        attempt = attempt if attempt is not None else known.attempt if known is not None else 0
        pending = PendingReport(due, next(self._numbers), job, attempt)
        self._pending[job] = pending
        heapq.heappush(self._heap, pending)
        if self._heap[0] is pending:
            self._wake()

    def _wake(self) -> None:
        """Have a thread look at the heap, whose first entry has changed."""
        if self._idle:
            self._change.notify_all()
        elif self._threads < self._max_threads:
            self._threads += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while (pending := self._next()) is not None:
            self._finished(pending, self._send(pending))

    def _next(self) -> PendingReport | None:
        """Wait for a report that is due; None when the thread is to end."""
        with self._change:
            idle_until = time.monotonic() + IDLE_SECONDS
            while True:
                now = time.monotonic()
                pending = self._pop_due(now)
                if pending is not None:
                    if self._heap:
                        self._wake()
                    return pending
                # One thread waits for the next report, so that the others do not wake up for it as well.
                is_timer = bool(self._heap) and not self._timer_waits
                wait_until = self._heap[0].due if is_timer else idle_until
                if not is_timer and now >= idle_until:
                    self._threads -= 1
                    return None
                self._idle += 1
                self._timer_waits = self._timer_waits or is_timer
                self._change.wait(max(0.0, wait_until - now))
                self._idle -= 1
                if is_timer:
                    self._timer_waits = False

    def _pop_due(self, now: float) -> PendingReport | None:
        while self._heap and (self._heap[0].due <= now or self._is_stale(self._heap[0])):
            pending = heapq.heappop(self._heap)
            if self._is_stale(pending):
                continue
            if not self._may_send(pending):
                continue
            del self._pending[pending.job]
            self._sending[pending.job] = None
            return pending
        return None

    def _is_stale(self, pending: PendingReport) -> bool:
        return self._pending.get(pending.job) is not pending

    def _finished(self, sent: PendingReport, following: NextAttempt | None) -> None:
        with self._change:
            due = self._sending.pop(sent.job)
            if following is not None:
                self._add(sent.job, time.monotonic() + following.delay, following.attempt)
            if due is not None:
                self._add(sent.job, due)


class ReportSender(JobSender):
    """Reports the jobs that are added to the backend."""

    def __init__(self, runs: Runs, backend_of: Callable[[str | None], JobsApi]) -> None:
        """`backend_of` makes the client for a tenant."""
        super().__init__(runs.outbox, "reports", MAX_THREADS)
        self._runs = runs
        self._backend_of = backend_of
        self._tenants: dict[str, str | None] = {}
        """Of the pending jobs of which it is known."""
        self._sending_of: Counter[str | None] = Counter()
        self._held: dict[str | None, deque[PendingReport]] = {}
        """Pending reports that are due, by the tenant to whose backend as many are sent as may be."""
        self._counted: dict[str, str | None] = {}
        """The jobs that are counted there, with their tenants."""

    def _send(self, pending: PendingReport) -> NextAttempt | None:
        backend_of = partial(self._backend_for, pending.job)
        return send_report(pending.job, pending.attempt, self._runs, backend_of)

    def _may_send(self, pending: PendingReport) -> bool:
        job = pending.job
        tenant = self._tenants.get(job)
        if job in self._tenants and self._sending_of[tenant] >= MAX_THREADS_PER_TENANT:
            self._held.setdefault(tenant, deque()).append(pending)
            return False
        return True

    def _finished(self, sent: PendingReport, following: NextAttempt | None) -> None:
        with self._change:
            if sent.job in self._counted:
                tenant = self._counted.pop(sent.job)
                self._sending_of[tenant] -= 1
                self._release_held(tenant)
            super()._finished(sent, following)
            if sent.job not in self._pending:
                self._tenants.pop(sent.job, None)

    def _release_held(self, tenant: str | None) -> None:
        """Let the next report to the backend of this tenant be sent."""
        held = self._held.get(tenant)
        while held:
            pending = held.popleft()
            if not self._is_stale(pending):
                heapq.heappush(self._heap, pending)
                self._wake()
                break
        if held is not None and not held:
            del self._held[tenant]

    def _backend_for(self, job: str, tenant: str | None) -> JobsApi:
        with self._change:
            self._tenants[job] = tenant
            if self._sending_of[tenant] >= MAX_THREADS_PER_TENANT:
                raise TenantBusyError
            self._sending_of[tenant] += 1
            self._counted[job] = tenant
        return self._backend_of(tenant)
