"""Runs plugin code in Ray: one-off calls in a task, frequent calls in an actor that stays loaded."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from shared.messages import JsonObject
from worker.platform import clean
from worker.plugins.errors import (
    PluginCallError,
    PluginError,
    PluginHostBusyError,
    PluginHostUnavailableError,
    PluginTimeoutError,
    parse_reply,
)
from worker.plugins.package import Packages, runtime_env
from worker.plugins.ray_session import RaySession, call_with_timeout
from worker.plugins.requests import ActionRequest
from worker.plugins.store import Release

MAX_IDLE_SECONDS = 600.0
"""An actor that was not called for this long is ended."""
MAX_ACTORS = 16
SUBMIT_TIMEOUT_SECONDS = 15.0
"""Submitting a call takes milliseconds, or forever when the cluster is lost."""
MAX_SLOT_WAIT_SECONDS = 5.0
"""Longest wait for an actor that runs another call."""
PROBE_INTERVAL_SECONDS = 5.0
"""How often a waiting call checks that the cluster is still reachable."""


@dataclass
class _Actor:
    handle: Any
    slot: threading.Lock = field(default_factory=threading.Lock)
    last_used: float = field(default_factory=time.monotonic)
    calls: int = 0


class RayHost:
    """Runs operations on the cluster that `session` is connected to; `timeout` is in seconds a call."""

    def __init__(
        self, session: RaySession, address: str | None, packages: Callable[[], Packages], timeout: float
    ) -> None:
        self._session = session
        self._address = address
        self._make_packages = packages
        self._packages: Packages | None = None
        self._timeout = timeout
        self._generation = 0
        self._actors: dict[tuple[str, str], _Actor] = {}
        self._lock = threading.Lock()

    def call(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """See `PluginHost.call`. The call runs in a task of zero CPUs that Ray never retries."""
        request = self._prepared(release, request)
        task = _remote_task().options(runtime_env=request.runtime_env)
        ref = self._submit(lambda: task.remote(request.to_json(), operation, json.dumps(payload)))
        return parse_reply(self._result(ref, release, operation, lambda: self._stop(lambda: _cancel(ref))))

    def call_batch(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """See `PluginHost.call_batch`. A dead actor is started again, once a call."""
        import ray

        request = self._prepared(release, request)
        text, key = json.dumps(payload), (release.checksum, request.entrypoint)
        for is_retry in (False, True):
            actor = self._actor(key, request)
            try:
                return parse_reply(self._call_in_slot(key, actor, release, request, operation, text))
            except ray.exceptions.RayActorError as error:
                self._kill(key, actor)
                if is_retry:
                    raise PluginCallError(
                        type(error).__name__, f"the process of {release.name} died"
                    ) from None
            finally:
                with self._lock:
                    actor.calls -= 1
                    actor.last_used = time.monotonic()
        raise AssertionError("unreachable")

    def _call_in_slot(
        self,
        key: tuple[str, str],
        actor: _Actor,
        release: Release,
        request: ActionRequest,
        operation: str,
        payload: str,
    ) -> str:
        """Run one call at a time, so that the timeout covers the call but not the wait for other calls.

        A wait occupies one of the worker's slots, so it is short; the step retries later without a failure.
        """
        if not actor.slot.acquire(timeout=MAX_SLOT_WAIT_SECONDS):
            raise PluginHostBusyError(f"{release.name}: its process is busy")
        try:
            ref = self._submit(lambda: actor.handle.run.remote(request.to_json(), operation, payload))
            return self._result(ref, release, operation, lambda: self._kill(key, actor))
        finally:
            actor.slot.release()

    def pin(self, releases: Iterable[Release]) -> None:
        """See `PluginHost.pin`. Idle actors are ended as well."""
        for release in releases:
            self.runtime_env(release, {})
        with self._lock:
            self._drop_idle()

    def close(self) -> None:
        """End the actors. The connection stays, as it belongs to the process."""
        with self._lock:
            self._actors.clear()

    def runtime_env(self, release: Release, env: dict[str, str]) -> JsonObject:
        """Connect, upload the release's package if it is not there, and make the runtime environment."""
        self._session.connect(self._address)
        with self._lock:
            if self._packages is None or self._generation != self._session.generation:
                self._actors.clear()  # their handles belong to the connection that was lost
                self._packages = self._make_packages()
                self._generation = self._session.generation
            packages = self._packages
        return runtime_env(release, packages.ensure(release), env)

    def _prepared(self, release: Release, request: ActionRequest) -> ActionRequest:
        return replace(request, runtime_env=self.runtime_env(release, request.env))

    def _actor(self, key: tuple[str, str], request: ActionRequest) -> _Actor:
        with self._lock:
            self._drop_idle()
            actor = self._actors.get(key)
            if actor is None:
                while len(self._actors) >= MAX_ACTORS:
                    del self._actors[min(self._actors, key=lambda other: self._actors[other].last_used)]
                options = {"runtime_env": request.runtime_env, "num_cpus": 0, "max_restarts": 0}
                handle = self._submit(lambda: _remote_actor().options(**options).remote())
                actor = self._actors[key] = _Actor(handle)
            actor.calls += 1
            return actor

    def _drop_idle(self) -> None:
        """Drop the handles of idle actors; an actor ends with its last handle."""
        now = time.monotonic()
        for key, actor in list(self._actors.items()):
            if actor.calls == 0 and now - actor.last_used > MAX_IDLE_SECONDS:
                del self._actors[key]

    def _kill(self, key: tuple[str, str], actor: _Actor) -> None:
        import ray

        with self._lock:
            if self._actors.get(key) is actor:
                del self._actors[key]
        self._stop(lambda: ray.kill(actor.handle))

    def _stop(self, end: Callable[[], Any]) -> None:
        """End a call or an actor if Ray still answers; it is forgotten in any case."""
        try:
            with suppress(TimeoutError):
                call_with_timeout(SUBMIT_TIMEOUT_SECONDS, end)
        except Exception:  # Ray raises errors of many classes for what is dead already
            self._session.mark_stale()

    def _submit(self, start: Callable[[], Any]) -> Any:
        try:
            return call_with_timeout(SUBMIT_TIMEOUT_SECONDS, start)
        except Exception as error:  # no code of the author runs here: what fails is Ray
            self._session.mark_stale()
            why = error if isinstance(error, TimeoutError) else type(error).__name__
            raise PluginHostUnavailableError(f"Ray did not accept the call ({why})") from None

    def _wait_until_done(self, ref: Any) -> bool:
        """Wait for the call to end; False on a timeout. Raises when the cluster is lost meanwhile."""
        import ray

        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            if ray.wait([ref], timeout=min(left, PROBE_INTERVAL_SECONDS))[0]:
                return True
            if not self._session.is_reachable():
                self._session.mark_stale()
                raise PluginHostUnavailableError("the Ray cluster was lost during the call")
        return False

    def _result(self, ref: Any, release: Release, operation: str, stop: Callable[[], None]) -> str:
        import ray

        try:
            if not self._wait_until_done(ref):
                stop()
                raise PluginTimeoutError(
                    f"{release.name}: {operation} took longer than {self._timeout:g} s and was stopped"
                )
            return str(ray.get(ref))
        except PluginError:
            raise
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise PluginCallError("RuntimeEnvSetupError", _tail(str(error))) from None
        except ray.exceptions.RayActorError:
            raise
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise PluginCallError(type(error).__name__, f"the process of {release.name} died") from None
        except ray.exceptions.RayTaskError as error:
            raise PluginCallError("RayTaskError", _tail(str(error))) from None
        except Exception as error:  # a lost connection raises errors of many classes
            self._session.mark_stale()
            raise PluginHostUnavailableError(f"the Ray cluster was lost ({type(error).__name__})") from None


def _cancel(ref: Any) -> None:
    import ray

    ray.cancel(ref, force=True)


def _tail(text: str) -> str:
    """The last lines, which say what went wrong; those before them are Ray's own.

    Secrets are removed before the text is cut, because half a secret could not be recognised.
    """
    return clean("\n".join(text.strip().splitlines()[-6:]))[-2_000:]


@lru_cache(maxsize=1)
def _remote_task() -> Any:
    import ray

    from worker.plugins.runner import run_in_ray

    return ray.remote(num_cpus=0, max_retries=0)(run_in_ray)


@lru_cache(maxsize=1)
def _remote_actor() -> Any:
    import ray

    from worker.plugins.runner import BatchActor

    return ray.remote(BatchActor)
