"""What every worker does periodically beside its tasks: republish lost messages, keep packages alive."""

import threading

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


class Maintenance:
    """A thread that sweeps every few seconds."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; possible again after a stop."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread within seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_SWEEPS):
            try:
                sweep()
                DeployedPackages(services()).pin()
            except INFRASTRUCTURE_ERRORS as error:
                log.warning("maintenance put off", error_type=type(error).__name__)
            except Exception as error:
                log.error("maintenance failed", error_type=type(error).__name__, error=clean(str(error)))
