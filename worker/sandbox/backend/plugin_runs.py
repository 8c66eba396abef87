"""`POST plugins/{code}/run/`: publish a deployment, or forward an inference to its application."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, Final

import httpx
import pydantic
from kombu.exceptions import OperationalError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared import DeployMessage, ServeApplicationStatus
from worker.actions import create_serve_multiplexed_model_id
from worker.sandbox.api import Api, ApiError, api_error, json_response, validated
from worker.sandbox.backend.entities import Releases
from worker.sandbox.backend.jobs import RELEASE_SQL, ApplicationSync
from worker.sandbox.backend.state import Row, State

RUN_FIELDS: Final[dict[str, type | tuple[type, ...]]] = {
    "agent": int,
    "action": str,
    "params": dict,
    "version": str,
    "job_id": (int, str),
    "language": str,
}
METHODS: Final = ("get", "post", "put", "patch", "delete")
INFERENCE_TIMEOUT_SECONDS: Final = 300
CONTEXT_HEADERS: Final = ("traceparent", "tracestate")
"""Of a caller's trace, which goes on in the application."""


class PluginRuns:
    """Publishes real messages and calls real applications."""

    def __init__(
        self,
        state: State,
        releases: Releases,
        sync: ApplicationSync,
        client: httpx.AsyncClient,
        publish: Callable[..., object],
        serve_url: str,
        plugin_token: str,
    ) -> None:
        self._state, self._releases, self._sync = state, releases, sync
        self._client, self._publish, self._serve_url = client, publish, serve_url
        self._plugin_token = plugin_token

    def routes(self, api: Api) -> list[Route]:
        """The routes."""
        return [api.route("/plugins/{code}/run/", POST=self.run)]

    async def run(self, request: Request, body: object) -> object:
        """Run one of the two actions that the worker requests: deployment and inference."""
        fields = validated(body, RUN_FIELDS, ["agent", "action", "params"])
        code, _, version_in_path = str(request.path_params["code"]).partition("@")
        if self._state.value("SELECT 1 FROM agents WHERE id = ?", fields["agent"]) is None:
            raise ApiError(400, {"agent": [f'Invalid pk "{fields["agent"]}" - object does not exist.']})
        version = fields.get("version", version_in_path or None)
        if fields["action"] == "inference":
            backend_url = str(request.base_url).rstrip("/")
            context = {name: request.headers[name] for name in CONTEXT_HEADERS if name in request.headers}
            return await self._inference(
                code, version, fields["agent"], fields["params"], backend_url, context
            )
        if fields["action"] == "deployment":
            return await self._deployment(code, version, fields, request.headers.get("traceparent"))
        raise ApiError(400, {"action": ["must be deployment or inference"]})

    async def _deployment(
        self, code: str, version: str | None, fields: dict[str, Any], traceparent: str | None
    ) -> Response:
        release = self._releases.latest(code, version)
        if release is None:
            raise api_error(404, "No PluginRelease matches the given query.")
        columns = {
            "plugin": f"{code}@{release['version']}",
            "agent": fields["agent"],
            "action": "deployment",
            "params": fields["params"],
        }
        job = self._state.add_job(parent=fields.get("job_id"), **columns)
        try:
            message = DeployMessage.model_validate(
                {"job": job, **columns, "language": fields.get("language", "en")}
            )
            context = {"traceparent": traceparent} if traceparent else {}
            await asyncio.to_thread(self._publish, message, **context)
        except pydantic.ValidationError as error:
            self._state.execute("DELETE FROM jobs WHERE id = ?", job)
            mistakes = {str(mistake["loc"][-1]): [mistake["msg"]] for mistake in error.errors()}
            raise ApiError(400, mistakes) from None
        except OperationalError:
            self._state.execute("DELETE FROM jobs WHERE id = ?", job)
            raise api_error(503, "The message queue cannot be reached.") from None
        return json_response({"id": job}, 201)

    async def _inference(
        self,
        code: str,
        version: str | None,
        agent: int,
        params: dict[str, Any],
        backend_url: str,
        context: dict[str, str],
    ) -> Response:
        record = self._application(code, version, agent)
        method = str(params.get("method", "post")).lower()
        if method not in METHODS:
            raise ApiError(400, {"params": [f"unknown method {method!r}"]})
        model = self._model_id(params["model"], backend_url) if "model" in params else None
        headers = context if model is None else {**context, "serve_multiplexed_model_id": model}
        url = f"{self._serve_url}{self._route_prefix(record).rstrip('/')}/"
        try:
            upstream = await self._client.request(
                method, url, headers=headers, json=params.get("json"), timeout=INFERENCE_TIMEOUT_SECONDS
            )
        except httpx.TimeoutException:
            raise api_error(504, "The application did not answer in time.") from None
        except httpx.TransportError:
            raise api_error(503, "The application cannot be reached.") from None
        if upstream.status_code == httpx.codes.NOT_FOUND:
            await self._sync.refresh()  # Serve's proxy answers so for a route that is gone
            self._application(code, version, agent)
        if not upstream.is_success:
            raise api_error(upstream.status_code, upstream.text[:1000])
        return Response(upstream.content, media_type="application/json")

    def _model_id(self, model: object, backend_url: str) -> str:
        """The platform's signed token of a model that the backend has; the plain id of any other."""
        if self._state.value("SELECT 1 FROM models WHERE id = ?", str(model)) is None:
            return str(model)
        return create_serve_multiplexed_model_id(str(model), self._plugin_token, backend_url)

    def _application(self, code: str, version: str | None, agent: int) -> Row:
        values = code, version, version, code, agent
        records = self._state.rows(
            "SELECT serve_applications.* FROM serve_applications JOIN jobs ON jobs.id = job"  # noqa: S608
            f" WHERE ({RELEASE_SQL} = ? || '@' || ? OR (? IS NULL AND {RELEASE_SQL} LIKE ? || '@%')) AND"
            " agent = ?"
            " ORDER BY serve_applications.status = 'RUNNING' DESC, serve_applications.id DESC LIMIT 1",
            *values,
        )
        if not records:
            release = f"{code}@{version}" if version else code
            raise api_error(404, f"{release} is not deployed on agent {agent}: it has no serve application.")
        name, status = records[0]["application"], records[0]["status"]
        if status == ServeApplicationStatus.UNAVAILABLE:
            raise api_error(503, f"{name} is not deployed on agent {agent}: Ray Serve has it no more.")
        if status != ServeApplicationStatus.RUNNING:
            raise api_error(503, f"The application {name} on agent {agent} is not running: {status}.")
        return records[0]

    def _route_prefix(self, record: Row) -> str:
        """The route on the cluster: from the agent, else from the record, else the default of the worker."""
        name = record["application"]
        reported = self._sync.route_prefix(name) or (record["data"] or {}).get("route_prefix")
        return (
            str(reported) if reported else f"/{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}"
        )
