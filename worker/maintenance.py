"""What every worker does periodically beside its tasks: what keeps runs going when others die."""

import threading
import time
from collections.abc import Callable

import structlog

from worker.blame import INFRASTRUCTURE_ERRORS
from worker.deploy.deployments import DeployedPackages
from worker.platform import clean
from worker.pre_processor.waitlist import WAITLIST_PREFIX, recover_waitlist
from worker.runs.heartbeat import RUN_PREFIX
from worker.runs.runs import Runs, recover_run
from worker.services import services
from worker.workflow.dead_letters import REJECTED_JOB_PREFIX, recover_rejected_job

log = structlog.get_logger(__name__)

SECONDS_BETWEEN_SWEEPS = 5.0
SECONDS_BETWEEN_TAKEOVERS = 1.0
STOP_TIMEOUT_SECONDS = 10.0


def sweep() -> int:
    """Publish again the messages of runs, waiting lists and rejected jobs whose heartbeat is overdue.

    Returns how many there were.
    """
    runs = services().runs
    members = runs.heartbeats.overdue()
    for member in members:
        log.warning("heartbeat overdue", member=member)
        try:
            _recover(member, runs)
        except INFRASTRUCTURE_ERRORS:
            raise
        except Exception as error:
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


def pin_packages() -> None:
    """Let Ray keep the packages of what is deployed."""
    DeployedPackages(services()).pin()


def take_over_reports() -> None:
    """Report what a worker that ended has left behind."""
    services().reports.take_over()


class Maintenance:
    """Threads, each at work every few seconds: a Ray that hangs delays no lost message."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; possible again after a stop."""
        self._stop.clear()
        self._threads = [
            threading.Thread(
                target=self._repeat, args=(work, seconds), name=f"maintenance-{name}", daemon=True
            )
            for name, work, seconds in (
                ("sweep", sweep, SECONDS_BETWEEN_SWEEPS),
                ("packages", pin_packages, SECONDS_BETWEEN_SWEEPS),
                ("reports", take_over_reports, SECONDS_BETWEEN_TAKEOVERS),
            )
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
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("reports not handed over", error_type=type(error).__name__)
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _repeat(self, work: Callable[[], object], seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                work()
            except INFRASTRUCTURE_ERRORS as error:
                log.warning("maintenance put off", error_type=type(error).__name__)
            except Exception as error:
                log.error("maintenance failed", error_type=type(error).__name__, error=clean(str(error)))
