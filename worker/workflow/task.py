"""The base task of the workflows, and the door through which messages become runs."""

import re
from functools import cached_property
from typing import Any, ClassVar

import structlog

from shared.messages import DeployMessage, ToTaskMessage
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    MalformedResponseError,
    RateLimitError,
    ServerError,
)
from worker.plugins import PluginHostUnavailableError
from worker.runs.heartbeat import run_member
from worker.runs.model import Acceptance, Step
from worker.runs.runs import Runs
from worker.runs.step_task import BACKBONE_ERRORS, StepTask
from worker.services import services
from worker.workflow.arguments import Arguments, arguments_of, check
from worker.workflow.reading import RefusedMessageError, parse, readable_job
from worker.workflow.refusals import keep_refused

log = structlog.get_logger(__name__)

MOST_LOOKS_AT_STORE = 60
"""Times that a message comes back for a plugin store that cannot be read."""


class WorkflowTask(StepTask):
    """A step of a workflow, on this process's services."""

    abstract = True
    transient: ClassVar[tuple[type[Exception], ...]] = (
        ClientConnectionError,
        ClientTimeoutError,
        RateLimitError,
        ServerError,
        MalformedResponseError,
        PluginHostUnavailableError,
    )

    @cached_property
    def _arguments(self) -> type[Arguments] | None:
        return arguments_of(self.run)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run, or keep a message whose arguments are none of the step's."""
        try:
            if self._arguments is not None:
                check(self._arguments, args, kwargs)
        except RefusedMessageError as refusal:
            return self.refuse(args, kwargs, str(refusal))
        return super().__call__(*args, **kwargs)

    @staticmethod
    def is_down(error: Exception) -> bool:
        """A backend that is down does not fail a run, however long it is."""
        gateway_says_so = isinstance(error, ServerError) and error.status_code in (502, 503, 504)
        return gateway_says_so or isinstance(error, ClientConnectionError | ClientTimeoutError)

    @property
    def runs(self) -> Runs:
        """The runs of this process."""
        return services().runs

    def accept(
        self,
        model: type[DeployMessage] | type[ToTaskMessage],
        first: Step,
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> None:
        """Take a message in: create its run, once, and send its first step; or keep it as a dead letter.

        A message that cannot be looked at now, for Redis, the broker or the plugin store is away, comes back.
        """
        try:
            message = parse(model, args, kwargs, services().store)
            self._take_in(message, first)
        except RefusedMessageError as refusal:
            self.refuse(args, kwargs, str(refusal))
        except BACKBONE_ERRORS as error:
            log.warning("message comes back", error_type=type(error).__name__)
            self.come_back(1.0)
        except OSError as error:
            if self.request.retries >= MOST_LOOKS_AT_STORE:
                self.refuse(args, kwargs, f"the plugin store cannot be read ({type(error).__name__})")
                return
            log.warning("plugin store away", error_type=type(error).__name__)
            self.come_back(0.5 * 2 ** min(self.request.retries, 10))
        except Exception as error:
            log.error("message not taken in", error_type=type(error).__name__, exc_info=True)
            self.refuse(args, kwargs, f"it could not be taken in ({type(error).__name__})")

    def _take_in(self, message: DeployMessage | ToTaskMessage, first: Step) -> None:
        queue = _home_queue(message, (self.request.delivery_info or {}).get("routing_key"))
        runs = self.runs
        acceptance = runs.store.accept(message, queue)
        if acceptance is Acceptance.STOPPED:
            runs.report_end(message.job)
            return
        # A second delivery may come from a worker that died right here, so the first step is sent again
        # while the run has not begun it. Another message of the same job may be of the other kind, whose
        # steps are none of this run.
        run = runs.store.load(message.job)
        if run.end is not None:
            runs.report_end(message.job)
        elif run.position < first.position and run.message.task == message.task:
            self.taken_in(run.message)
            runs.live.expect(run_member(message.job))
            runs.sender.send(first, run.queue, {"job": message.job})
        log.info("message taken in", job=message.job, plugin=message.plugin, acceptance=acceptance)

    def taken_in(self, message: DeployMessage | ToTaskMessage) -> None:
        """The message is the run's that is about to begin; a workflow may have something to say of it."""

    def refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> None:
        """Keep the message whole with the reason, and let its job end FAILED if it has no run."""
        log.warning("message refused", reason=reason, refused_job=readable_job(kwargs))
        try:
            keep_refused(services(), self.name, [list(args), kwargs], kwargs, reason, self.request.id)
        except BACKBONE_ERRORS as error:
            log.warning("refusal comes back", error_type=type(error).__name__)
            self.come_back(1.0)


def _home_queue(message: DeployMessage | ToTaskMessage, routing_key: Any) -> str:
    """Where the run's steps go: where its message came from, if that is one of the contract's queues.

    Who published says what the routing key is; the steps of a run must not go where nobody listens.
    """
    is_of_agent = isinstance(routing_key, str) and re.fullmatch(
        rf"{message.queue}\.[1-9][0-9]*", routing_key, re.ASCII
    )
    return str(routing_key) if is_of_agent else message.queue
