"""The jobs of a Ray in memory."""

from worker.testing.faults import Faults
from worker.whole_run.job_output import JobOutput
from worker.whole_run.ray_jobs import JobState


class FakeJobs:
    """The jobs of a Ray cluster.

    Attributes:
        faults: Errors to raise on demand.
        submitted: Ids of the jobs that were submitted, each as often as it was.
        jobs: What Ray says of each job.
        left: What the jobs leave when they have ended.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.submitted: list[str] = []
        self.jobs: dict[str, JobState] = {}
        self.left = JobOutput(result={"did": "it"})

    def submit(self, id: str, release: object, request: object, *, by_sdk: bool) -> None:
        """Submit a job, unless it is there.

        Args:
            id: Its id.
            release: The release; not looked at.
            request: The request; not looked at.
            by_sdk: Whose program it is; not looked at.
        """
        with self.faults.of("submit", id):
            if id not in self.jobs:
                self.submitted.append(id)
                self.jobs[id] = JobState("RUNNING")

    def state(self, id: str) -> JobState | None:
        """What Ray says of a job.

        Args:
            id: Its id.

        Returns:
            Its state, or None for a job that is not there.
        """
        with self.faults.of("state", id):
            return self.jobs.get(id)

    def stop(self, id: str) -> bool:
        """Stop a job.

        Args:
            id: Its id.

        Returns:
            Whether it was running.
        """
        with self.faults.of("stop", id):
            if self.jobs[id].status not in ("PENDING", "RUNNING"):
                return False
            self.jobs[id] = JobState("STOPPED")
            return True

    def output(self, id: str) -> JobOutput:
        """What a job has left.

        Args:
            id: Its id.

        Returns:
            `left`.
        """
        with self.faults.of("output", id):
            return self.left
