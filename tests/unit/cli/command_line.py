"""`synapse-worker` in this process: on a Redis in memory, or without one."""

from dataclasses import dataclass, field

from fakeredis import FakeRedis
from typer.testing import CliRunner

from shared import DeployMessage, Message
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from worker.cli.main import app
from worker.runs.model import End
from worker.runs.runs import Runs, Timing
from worker.workflow.dead_letters import DeadLetters

UNREACHABLE_REDIS = "redis://127.0.0.1:9/0"
RAY_JOB = "raysubmit_1"


def run_failing(*arguments: str) -> str:
    """Run a command that fails; returns its single error, in one line."""
    done = CliRunner().invoke(app, arguments, env={"REDIS_URL": UNREACHABLE_REDIS, "CELERY_BROKER_URL": ""})
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    assert done.stderr.count("error:") == 1
    return " ".join(done.stderr.split())


@dataclass
class CommandLine:
    """Runs commands on `redis`; the messages that they publish are kept in a list."""

    redis: FakeRedis
    published: list[Message] = field(default_factory=list)
    priorities: list[int | None] = field(default_factory=list)

    def publish(self, message: Message, *, priority: int | None = None) -> None:
        """In place of `Publisher.publish`."""
        self.published.append(message)
        self.priorities.append(priority)

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command that ends with `code`; returns its output, in one line."""
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "CELERY_BROKER_URL": ""})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    @property
    def runs(self) -> Runs:
        return Runs(self.redis, RecordingPublisher(), Timing(60))

    def given_run(self, job: str) -> None:
        """Add a run that has started."""
        message = DeployMessage.model_validate({"job": job, "plugin": "digits@1.0.0", "agent": 1})
        self.runs.store.accept(message, "deploy")
        if self.runs.store.load(job).end is None:
            self.runs.mark_running(self.runs.store.load(job))
            self.runs.set_progress(self.runs.store.load(job), "deploy", 10)

    def given_ended_run(self, job: str, status: JobStatus, error: str = "") -> None:
        self.given_run(job)
        self.runs.finish(job, End(status, {"error": error} if error else {}))

    def given_rejected_job(self, job: str, reason: str) -> str:
        """Add a job that is FAILED because of a dead letter; returns the id of the dead letter."""
        letters = DeadLetters(self.redis)
        letters.add("deploy", [[], {"job": job, "plugin": "late@1", "agent": 1}, {}], reason)
        letters.start_rejecting(job)
        letters.mark_rejected(job)
        return list(letters.all())[-1].id
