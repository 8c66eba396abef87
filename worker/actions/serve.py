"""An inference that outlives its request: it runs on, and a ticket is asked for until it is done.

The envelopes are the platform's (`__synapse_deferred__`, `__synapse_poll__`). Tickets live in one replica.
"""

import asyncio
import inspect
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from worker.actions.models import model_key, open_model
from worker.platform import clean

POLL_KEY = "__synapse_poll__"
ENVELOPE_KEY = "__synapse_deferred__"
MAX_TICKETS = 256
TICKET_TTL_SECONDS = 3600.0
"""A result that nobody asked for is forgotten after this."""


def requested_ticket(body: Any) -> str | None:
    """The ticket that a request asks for; None for a request of its own."""
    if not isinstance(body, dict) or POLL_KEY not in body:
        return None
    return str(body[POLL_KEY])


def deferred_envelope(status: str, **fields: Any) -> dict[str, Any]:
    """The answer in place of a result."""
    return {ENVELOPE_KEY: True, "status": status, **fields}


class Tickets:
    """Inferences that run on in this replica, at most `MAX_TICKETS`, the oldest forgotten first."""

    def __init__(self) -> None:
        self._running: OrderedDict[str, tuple[float, asyncio.Future[Any]]] = OrderedDict()

    def issue(self, task: "asyncio.Future[Any]") -> dict[str, Any]:
        """Keep `task` and answer with its ticket."""
        self._forget()
        ticket = secrets.token_urlsafe(12)
        self._running[ticket] = (time.monotonic(), task)
        return deferred_envelope("pending", ticket=ticket)

    def collect(self, ticket: str) -> Any:
        """The result once it is there; until then, or when it failed or is not here, an envelope."""
        self._forget()
        if ticket not in self._running:
            return deferred_envelope("not_found", ticket=ticket)
        task = self._running[ticket][1]
        if not task.done():
            return deferred_envelope("pending", ticket=ticket)
        del self._running[ticket]
        if task.cancelled():
            return deferred_envelope("failed", error="the inference was cancelled")
        error = task.exception()
        if error is not None:
            # It goes to whoever asked; an author's error may name what nobody else is to know.
            return deferred_envelope("failed", error=clean(f"{type(error).__name__}: {error}"))
        return task.result()

    def _forget(self) -> None:
        oldest = time.monotonic() - TICKET_TTL_SECONDS
        while self._running:
            made, task = next(iter(self._running.values()))
            if made > oldest and len(self._running) < MAX_TICKETS:
                return
            self._running.popitem(last=False)
            task.cancel()


class BaseServeDeployment:
    """A model behind Ray Serve. Override `_get_model` and `infer`.

    Give it a FastAPI `app` and routes of your own, or leave `app` out: then every request's JSON body goes
    through `handle_inference` to `infer`.
    """

    app: Any = None
    batched: ClassVar[bool] = False
    """Set where `serve_options.batch` is declared: `infer_batch` is then called with one input at a time by
    whoever answers a request, and receives a list of them."""
    max_models: ClassVar[int] = 3
    """Models that stay loaded in a replica; the one unused for longest goes first."""
    serve_deadline_s: ClassVar[float] = 8.0
    """Seconds that a request waits for its result; after that it is answered with a ticket."""

    def __init__(self, backend_url: str) -> None:
        self.backend_url = backend_url

    async def infer(self, *args: Any, **kwargs: Any) -> Any:
        """One inference. Override; plain or `async`."""
        raise NotImplementedError(
            "override infer(): it receives a request's JSON body and returns the result"
        )

    async def infer_batch(self, requests: list[Any]) -> list[Any]:
        """Many at once, one result each, in order. Override where a batch is cheaper than its parts."""
        return [await self._infer_one(request) for request in requests]

    async def _get_model(self, model_info: dict[str, Any]) -> Any:
        """Load the model. Override. `model_info` is the platform's record; `path` is its unpacked folder.

        For a request that names no model it is empty.
        """
        raise NotImplementedError(
            "override _get_model(): for example return torch.load(model_info['path'] / 'm.pt')"
        )

    async def get_model(self) -> Any:
        """The model that the request names, loaded once a replica."""
        from ray import serve

        identifier = serve.get_multiplexed_model_id()
        key = model_key(identifier)
        if not key:
            return await self._default_model()
        state = self._state()
        state["identifiers"][key] = identifier
        if "load" not in state:
            state["load"] = serve.multiplexed(max_num_models_per_replica=self.max_models)(self._loader())
        return await state["load"](key)

    async def handle_inference(
        self,
        request: Any,
        input_model: Any = None,
        runner: Callable[[Any], Awaitable[Any]] | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Any:
        """Answer one request (or its JSON body): its result, or a ticket when that takes too long.

        `input_model` is a pydantic model for the body; `runner` replaces `infer`.
        """
        # A pydantic model has a `json` too, which is no body to wait for.
        read = getattr(request, "json", None)
        body = await read() if inspect.iscoroutinefunction(read) else request
        tickets: Tickets = self._state()["tickets"]
        ticket = requested_ticket(body)
        if ticket is not None:
            return tickets.collect(ticket)
        # Off the loop: a model's validators may fetch files.
        data = body if input_model is None else await asyncio.to_thread(input_model.model_validate, body)
        task = asyncio.ensure_future((runner or self._run)(data))
        try:
            deadline = self.serve_deadline_s if deadline_s is None else deadline_s
            return await asyncio.wait_for(asyncio.shield(task), deadline)
        except TimeoutError:
            if task.done():
                return task.result()
            return tickets.issue(task)

    async def _run(self, data: Any) -> Any:
        from ray import serve

        if model_key(serve.get_multiplexed_model_id()):
            await self.get_model()
        if self.batched:
            return await self.infer_batch(data)
        return await self._infer_one(data)

    async def _infer_one(self, data: Any) -> Any:
        if inspect.iscoroutinefunction(self.infer):
            return await self.infer(data)
        return await asyncio.to_thread(self.infer, data)

    async def _default_model(self) -> Any:
        state = self._state()
        async with state["lock"]:
            if "model" not in state:
                state["model"] = await self._get_model({})
        return state["model"]

    def _loader(self) -> Callable[[str], Awaitable[Any]]:
        async def load(key: str) -> Any:
            identifier = self._state()["identifiers"][key]
            async with open_model(identifier, self.backend_url) as model_info:
                return await self._get_model(model_info)

        return load

    def _state(self) -> dict[str, Any]:
        """Made at first use: an author's `__init__` need not call this one."""
        state: dict[str, Any] | None = self.__dict__.get("_serve_state")
        if state is None:
            state = self.__dict__["_serve_state"] = {
                "tickets": Tickets(),
                "lock": asyncio.Lock(),
                "identifiers": {},
            }
        return state
