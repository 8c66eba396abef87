"""Ask the pre-processor, and poll for what it defers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.messages import ToTaskParams
from worker.platform import holds_secret
from worker.to_task.backends import AsyncBackend
from worker.to_task.errors import StillPendingError, TaskFailedError
from worker.to_task.ledger import Ticket

DEFERRED = "__synapse_deferred__"
POLL = "__synapse_poll__"
LONGEST_TICKET = 4_096


@dataclass(frozen=True)
class PreProcessor:
    """The finding of the waiting room, as an inference needs it."""

    code: str
    version: str
    agent: int
    config: Mapping[str, Any]

    @classmethod
    def from_finding(cls, finding: Mapping[str, Any]) -> "PreProcessor":
        """Of the run's finding `pre_processor`."""
        return cls(finding["code"], finding["version"], finding["agent"], finding.get("config") or {})

    def requests_at_once(self, params: ToTaskParams) -> int:
        """What its release declares as `serve_options.batch.max_batch_size`, else the run's `batch_size`."""
        declared: Any = self.config
        for name in ("actions", "inference", "serve_options", "batch", "max_batch_size"):
            declared = declared.get(name) if isinstance(declared, Mapping) else None
        return declared if type(declared) is int and declared >= 1 else params.batch_size


async def ask(backend: AsyncBackend, target: PreProcessor, call: Mapping[str, Any]) -> Any:
    """The pre-processor's answer to `call`, the plugin's `params`: a result, or the `Ticket` for it."""
    return _result(await backend.run_plugin(target.code, _body(target, call)), call.get("model"))


async def poll(backend: AsyncBackend, target: PreProcessor, ticket: Ticket) -> Any:
    """What has become of a deferred inference; `StillPendingError` while it runs on."""
    call: dict[str, Any] = {"method": "post", "json": {POLL: ticket.ticket}}
    if ticket.model is not None:
        call["model"] = ticket.model
    answer = _result(await backend.run_plugin(target.code, _body(target, call)), ticket.model)
    if isinstance(answer, Ticket):
        raise StillPendingError
    return answer


def _body(target: PreProcessor, call: Mapping[str, Any]) -> dict[str, Any]:
    return {"agent": target.agent, "action": "inference", "params": dict(call), "version": target.version}


def _result(answer: Any, model: object) -> Any:
    if not isinstance(answer, dict) or answer.get(DEFERRED) is not True:
        return answer
    match answer.get("status"):
        case "pending" if _is_ticket(answer.get("ticket")):
            return Ticket(str(answer["ticket"]), model)
        case "failed":
            reason = str(answer.get("error") or "no reason given")
            raise TaskFailedError(f"the pre-processor's inference failed: {reason}")
        case "not_found":
            raise TaskFailedError(
                "the pre-processor does not know the ticket of this inference any more"
                " (tickets live in one replica: with several, the poll may miss it)"
            )
    raise TaskFailedError("the pre-processor deferred the inference in a way that is not understood")


def _is_ticket(found: Any) -> bool:
    """It is kept in Redis until it is asked for: neither without measure nor with a token of ours in it."""
    return isinstance(found, str | int) and len(str(found)) <= LONGEST_TICKET and not holds_secret(str(found))
