"""Runs plugin code in Ray: one-off calls in a task, frequent calls in an actor that stays loaded."""

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

from shared.messages import JsonObject
from worker.platform import clean
from worker.plugins.errors import (
    PluginCallError,
    PluginHostBusyError,
    PluginHostUnavailableError,
    PluginLoadError,
    PluginProcessDiedError,
    PluginTimeoutError,
    RayDriverError,
    RunEndedError,
    died_by_itself,
    parse_reply,
)
from worker.plugins.output import OnOutput, ignore_output
from worker.plugins.package import Packages, runtime_env
from worker.plugins.ray_driver import RayConnection, operations
from worker.plugins.ray_driver.operations import CallEnd, CallResult
from worker.plugins.requests import ActionRequest
from worker.plugins.run_end import check_run, wait_for
from worker.plugins.runner import LOAD
from worker.plugins.store import Release

logger = logging.getLogger(__name__)

MAX_IDLE_SECONDS = 600.0
"""An actor that was not called for this long is ended."""
MAX_ACTORS = 16
SUBMIT_TIMEOUT_SECONDS = 15.0
"""Submitting a call takes milliseconds, or forever when the cluster is lost."""
MAX_SLOT_WAIT_SECONDS = 5.0
"""Longest wait for an actor that runs another call."""
MAX_START_SECONDS = 300.0
"""Longest wait for the process of an actor, which may have to install the release's requirements."""
PROBE_INTERVAL_SECONDS = 5.0
"""How often a waiting call checks that the cluster is still reachable."""


@dataclass
class _Actor:
    id: str = ""
    """Empty until the first call in the slot has started it."""
    slot: threading.Lock = field(default_factory=threading.Lock)
    last_used: float = field(default_factory=time.monotonic)
    calls: int = 0
    """Which run or wait for the slot."""
    answered: int = 0
    has_started: bool = False
    has_loaded: bool = False
    is_loading: bool = False
    """Whether the call in the slot is that of a warm-up."""


@dataclass(frozen=True)
class _ActorCall:
    """A call in an actor, by an id of this process, so that it can be abandoned while it is being begun."""

    id: str
    operation: str
    payload: str


class RayHost:
    """Runs operations on the cluster of `connection`; `timeout` is in seconds a call.

    When the run ends for which a call is made, the call is abandoned and its process is killed.
    """

    def __init__(
        self,
        connection: RayConnection,
        packages: Packages,
        timeout: float,
        on_output: OnOutput = ignore_output,
    ) -> None:
        self._connection = connection
        self._packages = packages
        self._timeout = timeout
        self._on_output = on_output
        self._generation = 0
        self._actors: dict[tuple[str, str], _Actor] = {}
        self._warming: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def call(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """See `PluginHost.call`. The call runs in a task of zero CPUs that Ray never retries."""
        request = self._prepared(release, request)
        arguments = request.runtime_env, request.to_json(), operation, json.dumps(payload)
        call = self._submit(operations.start_task, *arguments, undo=operations.cancel_call)
        try:
            return parse_reply(
                self._reply(call, release, operation, self._timeout), partial(self._on_output, request)
            )
        except PluginTimeoutError:
            self._stop(operations.cancel_call, call)
            raise
        except RunEndedError:
            self._send(operations.cancel_call, call)
            raise

    def call_batch(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """See `PluginHost.call_batch`.

        A call amid which its process dies is made again, in a new process, unless `died_by_itself`.
        """
        text, key, is_retry = json.dumps(payload), _key(release, request), False
        while True:
            request = self._prepared(release, request)  # each time, as the cluster may be another one
            actor = self._actor(key)
            try:
                reply = self._call_in_slot(key, actor, release, request, operation, text)
            except PluginProcessDiedError:
                if is_retry or died_by_itself(actor.answered, payload):
                    raise
                is_retry = True
                continue
            finally:
                with self._lock:
                    actor.calls -= 1
                    actor.last_used = time.monotonic()
            # None: the call before this one hung or ended the process, which is no fault of this one.
            if reply is not None:
                return parse_reply(reply, partial(self._on_output, request))

    def warm_up(self, release: Release, request: ActionRequest) -> None:
        """See `PluginHost.warm_up`: its package is uploaded, its process started, its entrypoint imported."""
        key = _key(release, request)
        with self._lock:
            if key in self._warming or key in self._actors:
                return
            self._warming.add(key)
        arguments = key, release, request
        threading.Thread(target=self._warm_up, args=arguments, name="plugin-warm-up", daemon=True).start()

    def _warm_up(self, key: tuple[str, str], release: Release, request: ActionRequest) -> None:
        try:
            self.call_batch(release, request, LOAD, None)
        except Exception as error:
            # Also one of the author's module: the first call meets it again, and its run shows it.
            logger.info("plugin not warmed up", extra={"error_type": type(error).__name__})
        finally:
            with self._lock:
                self._warming.discard(key)

    def _call_in_slot(
        self,
        key: tuple[str, str],
        actor: _Actor,
        release: Release,
        request: ActionRequest,
        operation: str,
        payload: str,
    ) -> str | None:
        """Run one call at a time, so that the timeout covers the call but no wait for others or its process.

        None when the process is gone by the time that it is free. A wait occupies one of the worker's slots,
        so it is short; the step retries later without a failure. But what a warm-up does, the call would have
        to do itself.
        """
        while not wait_for(lambda seconds: actor.slot.acquire(timeout=seconds), MAX_SLOT_WAIT_SECONDS):
            if not actor.is_loading:
                raise PluginHostBusyError(f"{release.name}: its process is busy")
        call = _ActorCall(uuid4().hex, operation, payload)
        actor.is_loading = operation == LOAD
        try:
            if not self._is_current(key, actor):
                return None
            if not actor.id:
                start = operations.start_actor
                actor.id = self._submit(start, request.runtime_env, undo=operations.kill_actor)
            if not actor.has_started:
                self._await_start(key, actor, release)
            if not actor.has_loaded and operation != LOAD:
                self._load(key, actor, release, request)
            reply = self._reply_of_actor(actor, call, release, request, self._timeout)
            actor.has_loaded = True
            actor.answered += operation != LOAD
            return reply
        except (PluginTimeoutError, PluginProcessDiedError):
            # Before the slot is free, so that a call that waits for it does not find a dead process.
            self._kill(key, actor, call.id)
            raise
        except RunEndedError:
            self._forget(key, actor)
            self._send(operations.kill_actor, actor.id, call.id)
            raise
        finally:
            actor.is_loading = False
            actor.slot.release()

    def _await_start(self, key: tuple[str, str], actor: _Actor, release: Release) -> None:
        """Wait until the process can be called. No code of the author runs before, so no item is to blame."""
        undo = partial(operations.kill_actor, actor.id)
        call = self._submit(operations.await_actor, actor.id, undo=undo)
        try:
            result = self._wait_until_done(call, MAX_START_SECONDS)
        except RunEndedError:
            self._send(operations.kill_actor, actor.id, call)
            raise
        actor.has_started = result is not None and result.end == CallEnd.REPLY
        if actor.has_started:
            return
        self._kill(key, actor, call)
        if result is None:
            raise PluginHostUnavailableError(
                f"the process of {release.name} has not started within {MAX_START_SECONDS:g} s"
            )
        if result.end in (CallEnd.ACTOR_DIED, CallEnd.PROCESS_DIED):
            raise PluginHostUnavailableError(
                f"the process of {release.name} died at its start ({result.error_type})"
            )
        raise PluginCallError(result.error_type, _tail(result.text))

    def _reply_of_actor(
        self, actor: _Actor, call: _ActorCall, release: Release, request: ActionRequest, seconds: float
    ) -> str:
        arguments = call.id, actor.id, request.to_json(), call.operation, call.payload
        return self._reply(call.id, release, call.operation, seconds, (operations.call_actor, *arguments))

    def _load(self, key: tuple[str, str], actor: _Actor, release: Release, request: ActionRequest) -> None:
        """Import the author's modules apart from the first call, so that no item is to blame for that.

        An error that they raise is met again by the call.
        """
        call = _ActorCall(uuid4().hex, LOAD, "null")
        try:
            self._reply_of_actor(actor, call, release, request, MAX_START_SECONDS)
        except (PluginTimeoutError, PluginProcessDiedError) as error:
            self._kill(key, actor, call.id)
            raise PluginLoadError(f"{release.name} cannot be imported: {error}") from None
        except RunEndedError:
            self._send(operations.kill_actor, actor.id, call.id)
            raise
        actor.has_loaded = True

    def _is_current(self, key: tuple[str, str], actor: _Actor) -> bool:
        with self._lock:
            return self._actors.get(key) is actor

    def pin(self, package: str) -> bool:
        """See `PluginHost.pin`. Idle actors are ended as well."""
        self._connect()
        with self._lock:
            idle = self._drop_idle()
        if idle:
            self._stop(operations.drop_actors, idle)
        return self._packages.keep(package)

    def restore(self, package: str, release: Release) -> bool:
        """See `PluginHost.restore`."""
        self._connect()
        return self._packages.restore(package, release)

    def close(self) -> None:
        """End the actors. The connection stays, as it belongs to the process."""
        with self._lock:
            actors = [actor.id for actor in self._actors.values()]
            self._actors.clear()
        if actors and self._connection.driver.is_running:
            self._stop(operations.drop_actors, actors)

    def _runtime_env(self, release: Release, env: dict[str, str]) -> JsonObject:
        """Connect, upload the release's package if it is not there, and make the runtime environment."""
        check_run()
        self._connect()
        return runtime_env(release, self._packages.ensure(release), env)

    def _connect(self) -> None:
        self._connection.connect()
        with self._lock:
            if self._generation != self._connection.generation:
                self._actors.clear()  # their ids belong to the connection that was lost
                self._generation = self._connection.generation

    def _prepared(self, release: Release, request: ActionRequest) -> ActionRequest:
        return replace(request, runtime_env=self._runtime_env(release, request.env))

    def _actor(self, key: tuple[str, str]) -> _Actor:
        with self._lock:
            dropped = self._drop_idle()
            actor = self._actors.get(key)
            if actor is None:
                while len(self._actors) >= MAX_ACTORS:
                    oldest = min(self._actors, key=lambda other: self._actors[other].last_used)
                    dropped.append(self._actors.pop(oldest).id)
                actor = self._actors[key] = _Actor()
            actor.calls += 1
        if dropped:
            self._stop(operations.drop_actors, dropped)
        return actor

    def _drop_idle(self) -> list[str]:
        """Forget idle actors; an actor ends when the driver process drops its id."""
        now = time.monotonic()
        idle = [
            key
            for key, actor in self._actors.items()
            if actor.calls == 0 and now - actor.last_used > MAX_IDLE_SECONDS
        ]
        return [self._actors.pop(key).id for key in idle]

    def _kill(self, key: tuple[str, str], actor: _Actor, call: str | None = None) -> None:
        self._forget(key, actor)
        self._stop(operations.kill_actor, actor.id, call)

    def _forget(self, key: tuple[str, str], actor: _Actor) -> None:
        with self._lock:
            if self._actors.get(key) is actor:
                del self._actors[key]

    def _send(self, end: Callable[..., Any], *arguments: Any) -> None:
        """End what a run that has ended has left; nobody waits for it, as Ray may hang."""
        with suppress(RayDriverError):
            self._connection.driver.send(end, *arguments)

    def _stop(self, end: Callable[..., Any], *arguments: Any) -> None:
        """End a call or actors if Ray still answers; they are forgotten in any case."""
        with suppress(RayDriverError):
            self._connection.call(end, *arguments, timeout=SUBMIT_TIMEOUT_SECONDS)

    def _submit(
        self, start: Callable[..., Any], *arguments: Any, undo: Callable[[Any], Any] | None = None
    ) -> str:
        timeout = SUBMIT_TIMEOUT_SECONDS
        try:
            return str(self._connection.call(start, *arguments, timeout=timeout, undo=undo))
        except RayDriverError as error:  # no code of the author runs here: what fails is Ray
            raise PluginHostUnavailableError(f"Ray did not accept the call ({error})") from None

    def _wait_until_done(self, call: str, seconds: float, begin: tuple[Any, ...] = ()) -> CallResult | None:
        """Wait for the call's end; None on a timeout. Raises when the cluster is lost meanwhile.

        `begin`: the function, with its arguments, that begins the call and waits for its end at first.
        """
        deadline = time.monotonic() + seconds
        look = begin or (operations.wait_for_end, call)
        while (left := deadline - time.monotonic()) > 0:
            interval = min(left, PROBE_INTERVAL_SECONDS)
            timeout = interval + SUBMIT_TIMEOUT_SECONDS
            try:
                fields = self._connection.call(*look, interval, timeout=timeout)
            except RayDriverError as error:
                raise PluginHostUnavailableError(f"the Ray cluster was lost ({error})") from None
            if fields is not None:
                return CallResult(**fields)
            if not self._connection.is_reachable():
                self._connection.mark_stale()
                raise PluginHostUnavailableError("the Ray cluster was lost during the call")
            look = (operations.wait_for_end, call)
        return None

    def _reply(
        self,
        call: str,
        release: Release,
        operation: str,
        seconds: float,
        begin: tuple[Any, ...] = (),
    ) -> str:
        result = self._wait_until_done(call, seconds, begin)
        if result is None:
            raise PluginTimeoutError(
                f"{release.name}: {operation} took longer than {seconds:g} s and was stopped"
            )
        if result.end == CallEnd.REPLY:
            return result.reply
        if result.end in (CallEnd.ACTOR_DIED, CallEnd.PROCESS_DIED):
            raise PluginProcessDiedError(result.error_type, f"the process of {release.name} died")
        raise PluginCallError(result.error_type, _tail(result.text))


def _key(release: Release, request: ActionRequest) -> tuple[str, str]:
    return release.checksum, request.entrypoint


def _tail(text: str) -> str:
    """The last lines, which say what went wrong; those before them are Ray's own.

    Secrets are removed before the text is cut, because half a secret could not be recognised.
    """
    return clean("\n".join(text.strip().splitlines()[-6:]))[-2_000:]
