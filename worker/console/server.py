"""The HTTP server of the page: its files, the events for browsers, answers to questions, and actions."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final
from urllib.parse import parse_qs

import uvicorn
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis import Redis, RedisError
from redis.asyncio import Redis as AsyncRedis
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from shared import Message, Publisher, StopMessage
from shared.publisher import PRIORITIES
from shared.statuses import JobStatus
from shared.validation import unknown_parameters
from worker.console.access import Guard
from worker.console.changes import ChangeListener
from worker.console.event_streams import ChangeStreams
from worker.console.log_streams import LogStreams
from worker.console.metrics_page import MetricsPage
from worker.console.overview import Overview
from worker.console.page_files import NO_SUCH_PAGE, PageFiles
from worker.console.sessions import SESSION_COOKIE, SESSION_SECONDS, Sessions
from worker.monitoring.redis_metrics import RedisMetrics
from worker.workflow.dead_letters import DeadLetters, ReplayError, publish_again
from worker.workflow.ended_runs import Position
from worker.workflow.retry import RetryError, RetryProblem, check_job_is_free, retry_message

MAX_FORM_BYTES: Final = 4_096
FAILED_LOGIN_SECONDS: Final = 1.0
RETRY_OPTIONS: Final = ("plugin", "skip_annotated", "dry_run")
SHUTDOWN_SECONDS: Final = 3

Handler = Callable[[Request], Awaitable[Response]]


class Console:
    """The ASGI application and what it works with."""

    def __init__(
        self,
        redis: "Redis",
        subscriber: "AsyncRedis",
        overview: Overview,
        broker_url: str,
        *,
        token: str | None = None,
        hosts: Collection[str] = (),
        samples: Path | None = None,
    ) -> None:
        """`redis` is for threads, `subscriber` for the event loop.

        `token` is asked for; None for a page that everybody may use who reaches it. `hosts` as for `Guard`.
        `samples`: a folder of images, and of their labels in `samples.json`, which a demo leaves.
        """
        self._redis = redis
        self._overview = overview
        self._broker_url = broker_url
        self._sessions = Sessions(token)
        self._files = files = PageFiles(samples)
        self.changes = ChangeListener(redis, subscriber)
        self._closing = asyncio.Event()
        self.streams = ChangeStreams(self.changes, self._closing)
        logs = LogStreams(subscriber, self._closing)
        of_redis = RedisMetrics(redis, overview.redis_queues)
        metrics = MetricsPage(of_redis, self.changes, self.streams, logs)
        routes = [
            Route("/", files.page("index.html")),
            Route("/login", files.page("login.html"), methods=["GET"]),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/logout", self._log_out, methods=["POST"]),
            Route("/live", self._live),
            Route("/ready", self._ready),
            Route("/metrics", metrics.metrics),
            Route("/static/{name}", files.static),
            Route("/api/session", self._session),
            Route("/api/samples", self._answer(files.labels)),
            Route("/samples/{name}", files.sample),
            Route("/api/events", self.streams.changes),
            Route("/api/runs/{job}/log", logs.log),
            Route("/api/runs/{job}", self._run),
            Route("/api/runs/{job}/stop", self._stop, methods=["POST"]),
            Route("/api/runs/{job}/retry", self._retry, methods=["POST"]),
            Route("/api/ended", self._ended),
            Route("/api/waiting", self._answer(overview.waiting)),
            Route("/api/deployments", self._answer(overview.deployments)),
            Route("/api/queues", self._answer(overview.queues)),
            Route("/api/workers", self._answer(overview.workers)),
            Route("/api/dead-letters", self._answer(overview.dead_letters)),
            Route("/api/dead-letters/{id}/replay", self._replay, methods=["POST"]),
            Route("/api/dead-letters/{id}/drop", self._drop, methods=["POST"]),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Guard, sessions=self._sessions, hosts=hosts)],
            exception_handlers={
                RedisError: _redis_is_away,
                OperationalError: _broker_is_away,
                404: _not_found,
            },
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        listening = asyncio.create_task(self.changes.run())
        try:
            yield
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

    def close_streams(self) -> None:
        """End the event streams, which else keep the server from ending."""
        self._closing.set()

    # Files and sessions

    async def _log_in(self, request: Request) -> Response:
        body = await _limited_body(request)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not self._sessions.is_token(given):
            await asyncio.sleep(FAILED_LOGIN_SECONDS)
            return RedirectResponse("/login?failed=1", 303)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            SESSION_COOKIE,
            self._sessions.cookie(),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def _log_out(self, _: Request) -> Response:
        answer = JSONResponse({})
        answer.delete_cookie(SESSION_COOKIE)
        return answer

    async def _session(self, _: Request) -> Response:
        """Whether there is something to log out of, and images to be shown."""
        return JSONResponse({"token": self._sessions.is_required, "samples": self._files.has_samples})

    async def _live(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _ready(self, _: Request) -> Response:
        """Whether what the page shows is up to date."""
        is_ready = self.changes.published.is_connected
        return PlainTextResponse("ok\n" if is_ready else "Redis is away\n", 200 if is_ready else 503)

    # Questions

    def _answer(self, ask: Callable[[], Any]) -> Handler:
        async def answer(_: Request) -> Response:
            return JSONResponse(await asyncio.to_thread(ask))

        return answer

    async def _run(self, request: Request) -> Response:
        job = _job(request)
        found = await asyncio.to_thread(self._overview.run, job)
        if found is None:
            return _problem(404, f"no run of job {job} is known")
        return JSONResponse(found)

    async def _ended(self, request: Request) -> Response:
        """`?status=` those that ended so, `&from=` where the page before says that this one begins."""
        status, position = (request.query_params.get(name) for name in ("status", "from"))
        try:
            wanted = JobStatus(status) if status else None
            first = Position.parse(position) if position else None
        except ValueError:
            return _problem(400, "no such status, or no such place in the list")
        return JSONResponse(await asyncio.to_thread(self._overview.ended, wanted, first))

    # Actions

    async def _stop(self, request: Request) -> Response:
        message = StopMessage.model_validate({"job": _job(request)})
        await asyncio.to_thread(self._publish, message)
        return JSONResponse({"published": True})

    async def _retry(self, request: Request) -> Response:
        """The body is a JSON object with `new_job`, the backend's id of the job that retries the run.

        It may have the options of the command `retry`: `plugin`, `skip_annotated`, `dry_run` and `priority`.
        """
        job, body = _job(request), _json_object(await _limited_body(request))
        if body is None or "new_job" not in body:
            return _problem(400, "the body must be a JSON object with new_job")
        if mistake := unknown_parameters(body, ("new_job", *RETRY_OPTIONS, "priority")):
            return _problem(400, mistake)
        try:
            priority = _priority(body.pop("priority", None))
        except ValueError as error:
            return _problem(400, str(error))
        return await asyncio.to_thread(self._publish_retry, job, priority, **body)

    def _publish_retry(self, job: str, priority: int | None, new_job: object, **options: object) -> Response:
        try:
            message = retry_message(self._redis, job, new_job, **options)
            check_job_is_free(self._redis, message.job)
        except RetryError as error:
            status = {RetryProblem.NOT_KEPT: 404, RetryProblem.INVALID: 422}.get(error.problem, 409)
            detail = f"{error}. {error.hint}".strip()
            return JSONResponse({"detail": detail, "problem": error.problem}, status)
        self._publish(message, priority)
        return JSONResponse({"job": message.job})

    async def _replay(self, request: Request) -> Response:
        return await asyncio.to_thread(self._replay_letter, request.path_params["id"])

    def _replay_letter(self, id_: str) -> Response:
        letter = DeadLetters(self._redis).get(id_)
        if letter is None:
            return _problem(404, "there is no such dead letter")
        try:
            message = publish_again(self._redis, letter, self._publish)
        except ReplayError as error:
            return _problem(409, f"{error}. {error.hint}".strip())
        return JSONResponse({"job": message.job})

    async def _drop(self, request: Request) -> Response:
        dropped = await asyncio.to_thread(DeadLetters(self._redis).drop, request.path_params["id"])
        return JSONResponse({"dropped": True}) if dropped else _problem(404, "there is no such dead letter")

    def _publish(self, message: Message, priority: int | None = None) -> None:
        with Publisher(self._broker_url) as publisher:
            publisher.publish(message, priority=priority)


def _job(request: Request) -> str:
    try:
        return StopMessage.model_validate({"job": request.path_params["job"]}).job
    except ValidationError:
        raise HTTPException(404) from None


async def _limited_body(request: Request) -> bytes:
    body = b""
    with suppress(ClientDisconnect):
        async for part in request.stream():
            body += part
            if len(body) > MAX_FORM_BYTES:
                return b""
    return body


def _json_object(body: bytes) -> dict[str, object] | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):  # the latter where it is nested too deeply
        return None
    return content if isinstance(content, dict) else None


def _priority(value: object) -> int | None:
    """As a message has it; raises `ValueError` for what is none. True is an integer, and no priority."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value in PRIORITIES):
        return value
    raise ValueError(f"priority must be a whole number from {PRIORITIES[0]} to {PRIORITIES[-1]}")


def _problem(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


async def _redis_is_away(_: Request, error: Exception) -> Response:
    return _problem(503, f"Redis does not answer ({type(error).__name__})")


async def _broker_is_away(_: Request, error: Exception) -> Response:
    return _problem(503, f"the message queue does not answer ({type(error).__name__})")


async def _not_found(_: Request, __: Exception) -> Response:
    return PlainTextResponse(NO_SUCH_PAGE, 404)


class _Server(uvicorn.Server):
    def __init__(self, console: Console, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._console = console

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the streams end now, which would last for ever else."""
        self._console.close_streams()
        super().handle_exit(sig, frame)


def server_config(console: Console, host: str, port: int, forwarded_allow_ips: str) -> uvicorn.Config:
    """How uvicorn serves the page; for `forwarded_allow_ips` see its setting of that name."""
    return uvicorn.Config(
        console.app,
        host=host,
        port=port,
        forwarded_allow_ips=forwarded_allow_ips,
        log_level="warning",
        access_log=False,  # no address of a request is written anywhere
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def serve(console: Console, host: str, port: int, forwarded_allow_ips: str) -> None:
    """Serve until SIGINT or SIGTERM."""
    _Server(console, server_config(console, host, port, forwarded_allow_ips)).run()
