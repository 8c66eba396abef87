"""A model behind Ray Serve, and inferences that outlive their request.

Such an inference continues in its replica while the caller polls for its ticket. The envelope of a ticket is
the platform's (platform-api: "An inference that outlives its request").
"""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shared.deferred import NOT_FOUND
from shared.messages import JsonObject
from shared.validation import json_mistake
from worker.actions.models import model_key, open_model
from worker.actions.tickets import Tickets, deferred_envelope, is_not_found, requested_ticket

REPLICAS_TIMEOUT_SECONDS = 5.0
"""For the other replicas to say whether they know a ticket."""


@dataclass
class _ReplicaState:
    tickets: Tickets = field(default_factory=Tickets)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    identifiers: dict[str, str] = field(default_factory=dict)
    """By the key under which Serve knows a model, the id or token of a request for it."""
    load: Callable[[str], Awaitable[Any]] | None = None
    default_model: tuple[Any] | None = None
    """The model for requests that name none, in a tuple because the model itself may be None."""


class BaseServeDeployment:
    """A model behind Ray Serve (seeds: deployment action). Override `_get_model` and `infer`.

    Set a FastAPI `app` with routes of your own, or leave `app` out: then every request's JSON body goes
    through `handle_inference` to `infer`.

    Attributes:
        app: A FastAPI application whose routes are served; None for none.
        batched: True where config.yaml declares `serve_options.batch`. A request then calls `infer_batch`
            with its one input, and Serve calls the method with a list of the inputs of several requests.
        max_models: How many models stay loaded in a replica; the least recently used one is unloaded first.
        serve_deadline_s: Seconds that a request waits for its result before it is answered with a ticket.
    """

    app: Any = None
    batched: ClassVar[bool] = False
    max_models: ClassVar[int] = 3
    serve_deadline_s: ClassVar[float] = 8.0

    def __init__(self, backend_url: str) -> None:
        """Make a replica of the deployment.

        Args:
            backend_url: Base URL of the platform's backend, from which models are downloaded.
        """
        self.backend_url = backend_url

    async def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Run one inference. Override this; it may be `async`, and else runs in a thread.

        Args:
            *args: The request's JSON body, as `input_model` where one is declared.
            **kwargs: What routes of your own pass.

        Returns:
            The result, which can be written as JSON.

        Raises:
            NotImplementedError: The class does not override it.
        """
        raise NotImplementedError(
            "override infer(): it receives a request's JSON body and returns the result"
        )

    async def infer_batch(self, requests: list[Any]) -> list[Any]:
        """Run several inferences at once. Override this where a batch is cheaper than its parts.

        Args:
            requests: The inputs.

        Returns:
            One result for each input, in the same order.
        """
        return [await self._infer_one(request) for request in requests]

    async def _get_model(self, model_info: JsonObject) -> Any:
        """Load the model. Override this.

        Args:
            model_info: The platform's record of the model, whose `path` is the folder of its unpacked file;
                empty for a request that names no model.

        Returns:
            What `get_model` returns to `infer`.
        """
        raise NotImplementedError(
            "override _get_model(): for example return torch.load(model_info['path'] / 'm.pt')"
        )

    async def get_model(self) -> Any:
        """Get the model that the request names, loaded once in each replica.

        Returns:
            The value of `_get_model`.

        Raises:
            ModelTokenError: The request's model token was not signed by this backend.
            ModelFileError: The model's file cannot be downloaded.
            ClientError: The backend does not answer or knows no such model.
        """
        from ray import serve

        identifier = serve.get_multiplexed_model_id()
        key = model_key(identifier)
        if not key:
            return await self._default_model()
        state = self._state()
        state.identifiers[key] = identifier
        if state.load is None:
            state.load = serve.multiplexed(max_num_models_per_replica=self.max_models)(self._loader())
        return await state.load(key)

    async def handle_inference(
        self,
        body: Any,
        input_model: Any = None,
        runner: Callable[[Any], Awaitable[Any]] | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Any:
        """Answer one request: with its result, or with a ticket when that takes too long.

        Args:
            body: The request's JSON body, or the HTTP request itself.
            input_model: A pydantic model that the body is validated with.
            runner: An asynchronous function to call in place of `infer`.
            deadline_s: Seconds to wait for the result; by default `serve_deadline_s`.

        Returns:
            The result, or an envelope (platform-api: "An inference that outlives its request").

        Raises:
            pydantic.ValidationError: The body does not fit `input_model`.
            fastapi.HTTPException: JSON cannot hold the result; its detail says why.
        """
        answer = await self._answer(body, input_model, runner, deadline_s)
        if isinstance(answer, dict | list) and (mistake := json_mistake(answer, numbers_only=True)):
            from fastapi import HTTPException

            # Writing such an answer would end in a bare 500.
            raise HTTPException(500, f"the result of the inference is no JSON: {mistake}")
        return answer

    async def _answer(
        self,
        body: Any,
        input_model: Any,
        runner: Callable[[Any], Awaitable[Any]] | None,
        deadline_s: float | None,
    ) -> Any:
        # A pydantic model has a method `json` too, but it is not asynchronous.
        read = getattr(body, "json", None)
        if inspect.iscoroutinefunction(read):
            body = await read()
        tickets = self._state().tickets
        ticket = requested_ticket(body)
        if ticket is not None:
            answer = tickets.collect(ticket)
            if is_not_found(answer) and not tickets.is_own(ticket):
                return await self._collect_from_replicas(ticket)
            return answer
        # In a thread, because a model's validators may download files.
        data = body if input_model is None else await asyncio.to_thread(input_model.model_validate, body)
        task = asyncio.ensure_future((runner or self._run)(data))
        try:
            deadline = self.serve_deadline_s if deadline_s is None else deadline_s
            return await asyncio.wait_for(asyncio.shield(task), deadline)
        except TimeoutError:
            if task.done():
                return task.result()
            return tickets.issue(task)

    async def collect_ticket(self, ticket: str) -> Any:
        """Answer a poll that has met another replica, which calls this on all of them.

        Args:
            ticket: The ticket of an envelope.

        Returns:
            As `handle_inference` for a poll.
        """
        return self._state().tickets.collect(ticket, for_replica=True)

    async def _collect_from_replicas(self, ticket: str) -> Any:
        """The answer of the replica that has issued the ticket; `not_found` when none of them knows it."""
        from ray import serve
        from ray.serve.exceptions import RayServeException

        answers: list[Any] = []
        with contextlib.suppress(RayServeException, TimeoutError):
            context = serve.get_replica_context()
            handle = serve.get_deployment_handle(context.deployment, context.app_name)
            answers = await handle.broadcast("collect_ticket", ticket).results_async(
                timeout_s=REPLICAS_TIMEOUT_SECONDS, return_exceptions=True
            )
        known = (each for each in answers if not (isinstance(each, BaseException) or is_not_found(each)))
        return next(known, deferred_envelope(NOT_FOUND, ticket=ticket))

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
        async with state.lock:
            if not state.default_model:
                state.default_model = (await self._get_model({}),)
        return state.default_model[0]

    def _loader(self) -> Callable[[str], Awaitable[Any]]:
        async def load(key: str) -> Any:
            identifier = self._state().identifiers[key]
            async with open_model(identifier, self.backend_url) as model_info:
                return await self._get_model(model_info)

        return load

    def _state(self) -> "_ReplicaState":
        """The replica's state, made at first use, because an author's `__init__` need not call the base's."""
        state: _ReplicaState | None = self.__dict__.get("_serve_state")
        if state is None:
            state = self.__dict__["_serve_state"] = _ReplicaState()
        return state
