"""`POST plugins/{code}/run/`: dispatch a deployment, or pass an inference on to its application."""

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

from shared import DeployMessage, Message
from worker.sandbox.api import Api, Refusal, answer, checked, refusal
from worker.sandbox.backend.entities import Releases
from worker.sandbox.backend.jobs import RELEASE, AgentFeed
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
INFERENCE_SECONDS: Final = 300


class PluginRuns:
    """Publishes real messages and calls the real application."""

    def __init__(
        self,
        state: State,
        releases: Releases,
        feed: AgentFeed,
        client: httpx.AsyncClient,
        publish: Callable[[Message], object],
        serve_url: str,
    ) -> None:
        self._state, self._releases, self._feed = state, releases, feed
        self._client, self._publish, self._serve_url = client, publish, serve_url

    def routes(self, api: Api) -> list[Route]:
        """The address."""
        return [api.route("/plugins/{code}/run/", POST=self.run)]

    async def run(self, request: Request, body: object) -> object:
        """Run one of the two actions that runs of the worker ask for."""
        given = checked(body, RUN_FIELDS, ["agent", "action", "params"])
        code, _, version = str(request.path_params["code"]).partition("@")
        if self._state.value("SELECT 1 FROM agents WHERE id = ?", given["agent"]) is None:
            raise Refusal(400, {"agent": [f'Invalid pk "{given["agent"]}" - object does not exist.']})
        wanted = given.get("version", version or None)
        if given["action"] == "inference":
            return await self._inference(code, wanted, given["agent"], given["params"])
        if given["action"] == "deployment":
            return await self._deployment(code, wanted, given)
        raise Refusal(400, {"action": ["must be deployment or inference"]})

    async def _deployment(self, code: str, version: str | None, given: dict[str, Any]) -> Response:
        release = self._releases.latest(code, version)
        if release is None:
            raise refusal(404, "No PluginRelease matches the given query.")
        columns = {
            "plugin": f"{code}@{release['version']}",
            "agent": given["agent"],
            "action": "deployment",
            "params": given["params"],
        }
        job = self._state.add_job(parent=given.get("job_id"), **columns)
        try:
            message = DeployMessage.model_validate(
                {"job": job, **columns, "language": given.get("language", "en")}
            )
            await asyncio.to_thread(self._publish, message)
        except pydantic.ValidationError as error:
            self._state.execute("DELETE FROM jobs WHERE id = ?", job)
            mistakes = {str(mistake["loc"][-1]): [mistake["msg"]] for mistake in error.errors()}
            raise Refusal(400, mistakes) from None
        except OperationalError:
            self._state.execute("DELETE FROM jobs WHERE id = ?", job)
            raise refusal(503, "The message queue cannot be reached.") from None
        return answer({"id": job}, 201)

    async def _inference(
        self, code: str, version: str | None, agent: int, params: dict[str, Any]
    ) -> Response:
        record = self._application(code, version, agent)
        method = str(params.get("method", "post")).lower()
        if method not in METHODS:
            raise Refusal(400, {"params": [f"unknown method {method!r}"]})
        headers = {"serve_multiplexed_model_id": str(params["model"])} if "model" in params else {}
        url = f"{self._serve_url}{self._route(record).rstrip('/')}/"
        try:
            upstream = await self._client.request(
                method, url, headers=headers, json=params.get("json"), timeout=INFERENCE_SECONDS
            )
        except httpx.TimeoutException:
            raise refusal(504, "The application did not answer in time.") from None
        except httpx.TransportError:
            raise refusal(503, "The application cannot be reached.") from None
        if not upstream.is_success:
            raise refusal(upstream.status_code, upstream.text[:1000])
        return Response(upstream.content, media_type="application/json")

    def _application(self, code: str, version: str | None, agent: int) -> Row:
        records = self._state.rows(
            "SELECT serve_applications.* FROM serve_applications JOIN jobs ON jobs.id = job"  # noqa: S608
            f" WHERE ({RELEASE} = ? || '@' || ? OR (? IS NULL AND {RELEASE} LIKE ? || '@%')) AND agent = ?"
            " ORDER BY serve_applications.status = 'RUNNING' DESC, serve_applications.id DESC LIMIT 1",
            code,
            version,
            version,
            code,
            agent,
        )
        if not records:
            raise refusal(404, "The plugin has no serve application on this agent.")
        if records[0]["status"] != "RUNNING":
            raise refusal(503, f"The serve application is not running: {records[0]['status']}.")
        return records[0]

    def _route(self, record: Row) -> str:
        """Where the cluster serves it: what the agent says, else the record, else the usual place."""
        name = record["application"]
        said = self._feed.route_prefix(name) or (record["data"] or {}).get("route_prefix")
        return str(said) if said else f"/{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}"
