"""Commands that publish work: deploy, to-task, stop."""

import json
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from shared import DeployMessage, Message, StopMessage, ToTaskMessage
from worker.cli.console import DEFAULT_REDIS_URL, BrokerUrl, Job, RedisUrl, fail, out, publish
from worker.cli.following import follow_to_end

Plugin = Annotated[str, typer.Argument(help="The plugin's release, code@version.", metavar="PLUGIN")]
Params = Annotated[str, typer.Option("--params", help="The message's params, a JSON object.")]
Tenant = Annotated[str | None, typer.Option(help="The tenant at the backend.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the run until it ends.")]


def deploy(
    job: Job,
    plugin: Plugin,
    agent: Annotated[int, typer.Option(help="The Ray cluster's agent.")],
    params: Params = "{}",
    tenant: Tenant = None,
    follow: Follow = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Put a plugin's model online on Ray Serve."""
    fields = _fields(job=job, plugin=plugin, agent=agent, params=_json(params), tenant=tenant)
    _publish(DeployMessage, fields, broker_url, redis_url)
    if follow:
        follow_to_end(job, redis_url)


def to_task(
    job: Job,
    plugin: Plugin,
    params: Params,
    tenant: Tenant = None,
    follow: Follow = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Pre-annotate the tasks of a project."""
    fields = _fields(job=job, plugin=plugin, params=_json(params), tenant=tenant)
    _publish(ToTaskMessage, fields, broker_url, redis_url)
    if follow:
        follow_to_end(job, redis_url)


def stop(job: Job, redis_url: RedisUrl = DEFAULT_REDIS_URL, broker_url: BrokerUrl = None) -> None:
    """End a run, also one that has not been read yet."""
    _publish(StopMessage, {"job": job}, broker_url, redis_url)


def _fields(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        fail(f"--params is not JSON: {error}")
    if not isinstance(value, dict):
        fail("--params must be a JSON object")
    return value


def _publish(model: type[Message], fields: dict[str, Any], broker_url: str | None, redis_url: str) -> None:
    try:
        message = model.model_validate(fields)
    except ValidationError as error:
        fail("; ".join(_mistake(item) for item in error.errors()))
    publish(message, broker_url, redis_url)
    out.print(f"{model.task} published: job {message.job}")


def _mistake(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    return f"{name}: {item['msg'].removeprefix('Value error, ')}"
