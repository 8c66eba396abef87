"""Commands on a Redis in memory, whose messages go into a list."""

from dataclasses import dataclass, field

import pytest
from fakeredis import FakeRedis
from typer.testing import CliRunner

from shared import DeployMessage, Message
from shared.statuses import JobStatus
from tests.unit.runs.runs_helpers import RecordingSender
from worker.cli.main import app
from worker.runs.model import End
from worker.runs.runs import Runs, Timing
from worker.workflow.dead_letters import DeadLetters


@dataclass
class Terminal:
    """The command `synapse-worker`, and what stands in its Redis."""

    redis: FakeRedis
    published: list[Message] = field(default_factory=list)

    def run(self, *arguments: str, code: int = 0) -> str:
        """All that a command says, in one line."""
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "CELERY_BROKER_URL": ""})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    @property
    def runs(self) -> Runs:
        return Runs(self.redis, RecordingSender(), Timing(60))

    def given_run(self, job: str) -> None:
        """A run that has begun."""
        message = DeployMessage.model_validate({"job": job, "plugin": "digits@1.0.0", "agent": 1})
        self.runs.store.accept(message, "deploy")
        if self.runs.store.load(job).end is None:
            self.runs.mark_running(self.runs.store.load(job))
            self.runs.set_progress(self.runs.store.load(job), "deploy", 10)

    def given_end(self, job: str, status: JobStatus, error: str = "") -> None:
        self.given_run(job)
        self.runs.finish(job, End(status, {"error": error} if error else {}))

    def given_refusal(self, job: str, reason: str) -> str:
        """A job that is FAILED because of a dead letter, whose id comes back."""
        letters = DeadLetters(self.redis)
        letters.add("deploy", [[], {"job": job, "plugin": "late@1", "agent": 1}, {}], reason)
        letters.start_rejecting(job)
        letters.mark_rejected(job)
        return list(letters.all())[-1].id


@pytest.fixture
def terminal(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal(redis)
    monkeypatch.setattr("worker.cli.console.Redis.from_url", lambda *_, **__: redis)
    monkeypatch.setattr("shared.Publisher.publish", lambda _self, message: terminal.published.append(message))
    return terminal
