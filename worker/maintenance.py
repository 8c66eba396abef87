"""What one of all workers does periodically: publish lost messages, remove what is old, pin packages."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
from redis import RedisError

from shared.redis_pools import sharing_connections
from worker.blame import INFRASTRUCTURE_ERRORS, Retries, in_step
from worker.deploy.packages import DeployedPackages
from worker.logs.retention import EndedLogs
from worker.platform import clean
from worker.pre_processor.waitlist import WAITLIST_PREFIX, recover_waitlist
from worker.runs.heartbeat import RUN_PREFIX
from worker.runs.locks import LEASE_SECONDS, Election
from worker.runs.runs import Runs, recover_run
from worker.services import services
from worker.settings import MB
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.ended_runs import EndedRuns
from worker.workflow.rejected_jobs import REJECTED_JOB_PREFIX, recover_rejected_job

log = structlog.get_logger(__name__)

SECONDS_BETWEEN_SWEEPS = 5.0
SECONDS_BETWEEN_TAKEOVERS = 3.0
FAILED_SECONDS = LEASE_SECONDS + 1
"""How long a worker on which a work failed leaves it to others."""
STOP_TIMEOUT_SECONDS = 10.0


def sweep() -> int:
    """Publish again the messages of runs, waiting lists and rejected jobs whose heartbeat is overdue.

    Returns how many there were. Those that wait for a share of which the limit was taken off go on, too.
    """
    runs = services().runs
    runs.shares.publish_waiting()
    members = runs.heartbeats.overdue()
    for member in members:
        log.warning("heartbeat overdue", member=member)
        try:
            _recover(member, runs)
        except Exception as error:
            if isinstance(error, INFRASTRUCTURE_ERRORS) and in_step(error).retries is Retries.UNLIMITED:
                raise
            # A member that cannot be read must not delay the others; it is found overdue again later.
            log.error(
                "not recovered", member=member, error_type=type(error).__name__, error=clean(str(error))
            )
    return len(members)


def _recover(member: str, runs: Runs) -> None:
    if member.startswith(RUN_PREFIX):
        recover_run(member.removeprefix(RUN_PREFIX), runs)
    elif member.startswith(WAITLIST_PREFIX):
        recover_waitlist(member.removeprefix(WAITLIST_PREFIX), runs)
    elif member.startswith(REJECTED_JOB_PREFIX):
        recover_rejected_job(member.removeprefix(REJECTED_JOB_PREFIX), runs)


def remove_old() -> None:
    """Remove what is too old or too much: logs of ended jobs, dead letters, ended runs."""
    redis, settings = services().redis, services().settings
    EndedLogs(
        redis, settings.worker_ended_logs_max_mb * MB, settings.worker_ended_logs_max_age_seconds
    ).trim()
    DeadLetters(redis).trim(
        settings.worker_dead_letters_max_mb * MB, settings.worker_dead_letters_max_age_seconds
    )
    EndedRuns(redis).trim(settings.worker_ended_runs_max_mb * MB, settings.worker_ended_runs_max_age_seconds)


def pin_packages() -> None:
    """Let Ray keep the packages of what is deployed."""
    DeployedPackages(services()).pin()


def take_over_reports() -> None:
    """Report what workers that died have left behind."""
    services().reports.take_over()


def take_over_webhooks() -> None:
    """Send the ends to the webhook that workers that died have left behind."""
    services().webhooks.take_over()


def hand_out_slots() -> None:
    """Give the slots of tenants to those that wait which nobody holds any more."""
    services().runs.shares.hand_out()


class Work:
    """One periodic work, done while this worker holds its lease."""

    def __init__(
        self,
        name: str,
        function: Callable[[], object],
        *,
        seconds: float | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """`seconds`: between two times, in place of `SECONDS_BETWEEN_SWEEPS`."""
        self.name = name
        self._function = function
        self._seconds = seconds
        self._lease_seconds = lease_seconds
        self._election: Election | None = None
        self._looks_in_vain = 0

    def do(self) -> float:
        """Do the work if it is this worker's; returns the seconds until the next look."""
        try:
            self._election = self._election or Election(services().redis, self.name, self._lease_seconds)
            wait = self._election.hold()
            if wait:
                self._looks_in_vain += 1
                return max(wait, self._rarer_look())
            self._looks_in_vain = 0
            self._function()
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("maintenance put off", work=self.name, error_type=type(error).__name__)
            if isinstance(error, RedisError):
                return SECONDS_BETWEEN_SWEEPS  # it is away for all workers
        except Exception as error:
            name, text = type(error).__name__, clean(str(error))
            log.error("maintenance failed", work=self.name, error_type=name, error=text)
        else:
            return SECONDS_BETWEEN_SWEEPS if self._seconds is None else self._seconds
        # What fails on this worker may succeed on another one, which then has the lease when this one looks.
        self.resign()
        return FAILED_SECONDS

    def _rarer_look(self) -> float:
        """Seconds until the next look at a lease that others renew: at first as soon as it may have ended."""
        return min(self._lease_seconds * 2.0 ** min(self._looks_in_vain - 2, 8), LEASE_SECONDS)

    def resign(self) -> None:
        """Let another worker do it."""
        with suppress(RedisError):
            if self._election is not None:
                self._election.resign()


def works() -> list[Work]:
    """The works of this worker. The workers of each agent have packages of their own."""
    settings = services().settings
    # A worker that starts anew after all have died is not to wait for the lease of one of them.
    lease = 2 * SECONDS_BETWEEN_TAKEOVERS
    reports = Work("reports", take_over_reports, seconds=SECONDS_BETWEEN_TAKEOVERS, lease_seconds=lease)
    works = [Work("sweep", sweep), Work("retention", remove_old), reports]
    if settings.worker_webhook_url:
        seconds = SECONDS_BETWEEN_TAKEOVERS
        works.append(Work("webhooks", take_over_webhooks, seconds=seconds, lease_seconds=lease))
    if services().runs.shares.are_limited:
        seconds = SECONDS_BETWEEN_TAKEOVERS
        works.append(Work("shares", hand_out_slots, seconds=seconds, lease_seconds=lease))
    if settings.ray_address:
        works.append(Work(f"packages:{settings.worker_agent or 'any'}", pin_packages))
    return works


class Maintenance:
    """A thread for each work, which looks every few seconds: a Ray that hangs delays no lost message."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; possible again after a stop."""
        self._stop.clear()
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=f"maintenance-{work.name}", daemon=True)
            for work in works()
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads within seconds; one that waits for Ray ends with the process.

        Other workers report what this one has not reported.
        """
        self._stop.set()
        try:
            services().reports.hand_over()
            if services().settings.worker_webhook_url:
                services().webhooks.hand_over()
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("reports not handed over", error_type=type(error).__name__)
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _repeat(self, work: Work) -> None:
        wait = SECONDS_BETWEEN_SWEEPS
        with sharing_connections():
            while not self._stop.wait(wait):
                wait = work.do()
            work.resign()
