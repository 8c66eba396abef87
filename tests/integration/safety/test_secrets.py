"""Secrets are planted in everything that a dependency or a plugin can return; none of them leaves the worker.

Planted: the worker's tokens (hostile responses echo their requests' headers, in their body and headers), the
password of Redis, tokens and addresses of agents, a release's own key, and secrets of other systems.
"""

import base64
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from shared import DeployMessage
from tests.harness.otlp_receiver import OtlpReceiver
from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.integration.safety.recording_proxy import Reaction, RecordingProxy, Request, Response
from tests.integration.safety.redis_monitor import RedisMonitor, all_keys, task_events, with_base64_decoded
from worker.sandbox.seed import seed_agent

REDIS_PASSWORD = "hush-redis+pa/ss-71c4"
AGENT_TOKEN = "hush-agent-token-52d9"
AGENT_PATH = "hush-agent-path-90aa"
AGENT_USER = "hush-agent-user-17ee"
RELEASE_KEY = "hush-release-key-33b0"
RECEIVER_KEY = "hush-receiver-key-71c4"
FOREIGN_SECRETS = {
    "password=": "hush-remote-password-1",
    '"token": "': "hush-remote-token-2",
    "https://u:": "hush-remote-userinfo-3",
    "?X-Amz-Signature=": "hush-remote-signature-4",
    "Authorization: Bearer ": "hush-remote-bearer-5",
    "api_key=": "hush-remote-key-6",
}
LEAKING_TEXT = (
    'my password=hush-remote-password-1, {"token": "hush-remote-token-2"}, https://u:hush-remote-userinfo-3@db/x,'
    " http://files/f.png?X-Amz-Signature=hush-remote-signature-4&a=b,"
    " Authorization: Bearer hush-remote-bearer-5, api_key=hush-remote-key-6"
)

LEAKING_PLUGIN = f"""
    import json
    import os

    from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction

    LEAKING_TEXT = {LEAKING_TEXT!r}


    class LeakingError(Exception):
        def __init__(self, text):
            super().__init__(text)
            self.token = "hush-remote-token-2"


    def leak():
        raise LeakingError(json.dumps(dict(os.environ)) + repr(os.environ) + LEAKING_TEXT)


    class Served(BaseServeDeployment):
        pass


    class Deployment(BaseDeploymentAction):
        entrypoint = Served

        def get_serve_app_name(self):
            leak()


    class ToTask(ToTaskAction):
        def convert_data_from_file(
            self, primary_file_url, primary_file_name, data_file_url, data_file_name, task_data=None
        ):
            if "0" in data_file_name:
                raise LeakingError(self.ctx.env["HF_TOKEN"] + " of " + str(dict(self.ctx.env)))
            leak()
"""


class EchoingResponses:
    """Makes reactions that respond with everything that the request contained, and counts the responses."""

    def __init__(self) -> None:
        self.count = 0
        self.redirect_url = ""

    def reaction(self, make: Any, times: int) -> Reaction:
        """Respond with `make` to so many requests; then forward them."""
        left = [times]
        lock = threading.Lock()

        def react(request: Request) -> Response | None:
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    return None
                self.count += 1
            response: Response = make(self._echo(request), request)
            return Response(response.status, response.body, {**self._headers(request), **response.headers})

        return react

    def _echo(self, request: Request) -> str:
        return f"you sent {request.headers} {json.dumps(request.headers)} to {request.path}; {LEAKING_TEXT}"

    def _headers(self, request: Request) -> dict[str, str]:
        token = request.headers.get("Synapse-Access-Token") or request.headers.get("Authorization") or ""
        return {
            "X-Echo": token,
            "Set-Cookie": f"session={token}",
            "WWW-Authenticate": f"{token} realm={LEAKING_TEXT}",
            "Retry-After": token,
            "Location": f"{self.redirect_url}/?token={token}",
        }


def of_json(status: int) -> Any:
    return lambda text, _: Response(status, json.dumps({"detail": text, "token": text}).encode())


VARIANTS: dict[str, Any] = {
    "400 by field": lambda text, _: Response(400, json.dumps({"name": [text], text: ["wrong"]}).encode()),
    "403 as text": lambda text, _: Response(403, text.encode()),
    "404": of_json(404),
    "302": of_json(302),
    "500 as HTML": lambda text, _: Response(500, f"<html>{text}</html>".encode()),
    "429": of_json(429),
    "200 not JSON": lambda text, _: Response(200, text.encode()),
    "200 a list": lambda text, _: Response(200, json.dumps([text]).encode()),
    "200 of odd values": lambda text, _: Response(
        200,
        json.dumps(
            dict.fromkeys(["id", "status", "data_collection", "results", "next", "data_unit", "config"], text)
        ).encode(),
    ),
}
ENDPOINTS = {
    "job": [("GET", "/jobs/{job}/", 3)],
    "project": [("GET", "/projects/{project}/", 3)],
    "collection": [("GET", "/data_collections/{collection}/", 3)],
    "list": [("GET", r"/sdk/tasks/\?.*project={project}(&|$)", 3)],
    "what ends no run": [
        ("PATCH", "/jobs/{job}/", 1),
        ("GET", "/tasks/{tasks[0]}/", 3),
        ("PUT", "/tasks/{tasks[1]}/annotate", 3),
    ],
}
"""The endpoints of one run each: method, path, and how many requests are answered so."""

WORKER_THREADS = 32
"""Runs wait for the pauses between attempts, in half of the threads; more of them wait at the same time."""

WAIT_SECONDS = 300
"""The bound on a hang, not on a slow machine."""


@pytest.fixture
def redirect_target() -> Iterator[tuple[str, list[str]]]:
    """The URL of another server, to which redirects lead, and the requests that it receives."""
    received: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(f"{self.path} {self.headers}")
            self.send_response(200)
            self.end_headers()

        do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", received
        server.shutdown()
        thread.join(5)


@pytest.fixture
def own_harness(tmp_path: Path) -> Iterator[ProxiedHarness]:
    """A harness of this test's own, because its Redis requires a password."""
    harness = ProxiedHarness(tmp_path)
    try:
        harness.add_release("leaking", LEAKING_PLUGIN, env={"HF_TOKEN": RELEASE_KEY})
        for number in range(len(VARIANTS)):
            harness.add_release(f"pre{number}", ECHO_SERVED)
        harness.sandbox.start()
        with Redis.from_url(harness.sandbox.redis_url) as redis:
            redis.config_set("requirepass", REDIS_PASSWORD)
        yield harness
    finally:
        harness.close()


ECHO_SERVED = "class Served: ...\n"


@contextmanager
def agents(harness: ProxiedHarness, echoing: EchoingResponses) -> Iterator[dict[str, int]]:
    """Ids of hostile agents, by their behaviour."""
    ids: dict[str, int] = {}
    denials = {
        "allowed": False,
        "reasons": [LEAKING_TEXT, f"{AGENT_TOKEN} may not", f"http://a/{AGENT_PATH}?x=1"],
    }
    responses: dict[str, Any] = {
        **VARIANTS,
        "denies": lambda _text, _: Response(200, json.dumps(denials).encode()),
    }
    with ExitStack() as stack:
        for number, (name, make) in enumerate(responses.items(), start=10):
            agent = RecordingProxy("http://127.0.0.1:1")
            stack.callback(agent.close)
            stack.enter_context(agent.intercept("POST", "/", echoing.reaction(make, 1000)))
            seed_agent(harness.state, id=number, url=f"{agent.url}/{AGENT_PATH}", token=AGENT_TOKEN)
            ids[name] = number
        url = f"http://{AGENT_USER}:{AGENT_TOKEN}@127.0.0.1:1/{AGENT_PATH}"
        ids["userinfo"] = seed_agent(harness.state, id=90, url=url, token=AGENT_TOKEN)
        ids["not listening"] = seed_agent(
            harness.state, id=91, url=f"http://127.0.0.1:1/{AGENT_PATH}", token=AGENT_TOKEN
        )
        ids["token of two lines"] = seed_agent(
            harness.state, id=92, url="http://127.0.0.1:1", token="a\nb" + AGENT_TOKEN
        )
        ids["no URL at all"] = seed_agent(
            harness.state, id=93, url=f"{AGENT_PATH}?{AGENT_TOKEN}", token=AGENT_TOKEN
        )
        yield ids


def start_runs_with_hostile_responses(
    harness: ProxiedHarness, echoing: EchoingResponses, stack: ExitStack
) -> list[str]:
    """Start a run for each endpoint and each kind of response; returns the jobs."""
    jobs: list[str] = []
    for make in VARIANTS.values():
        for requests in ENDPOINTS.values():
            project, job = harness.new_project(2), harness.new_job(plugin="echo@1.0.0", action="to_task")
            for method, path, times in requests:
                where = path.format(
                    job=job, project=project.id, collection=project.data_collection, tasks=project.tasks
                )
                stack.enter_context(harness.proxy.intercept(method, where, echoing.reaction(make, times)))
            message = {"job": job, "plugin": "echo@1.0.0", "params": harness.to_task_params(project)}
            harness.send_task("to_task", "to_task", message)
            jobs.append(job)
    return jobs


def start_runs_with_tokens_in_valid_responses(
    harness: ProxiedHarness, echoing: EchoingResponses, stack: ExitStack
) -> list[str]:
    """Start runs with valid responses that have the worker's token where it is stored or forwarded."""
    token = harness.sandbox.access_token

    def linked(_text: str, request: Request) -> Response:
        page = {"results": [{"id": 1}], "next": f"{harness.proxy.url}/sdk/tasks/?page=2&access={token}"}
        return Response(200, json.dumps(page).encode())

    release = {"id": 1, "version": "1.0.0", "config": {"code": "kept", "note": token, token: [token]}}
    project = harness.new_project(1)
    reactions = {
        f"/sdk/tasks/\\?.*project={project.id}(&|$)": ("GET", linked),
        "/plugin_releases/98/": ("GET", lambda _text, _: Response(200, json.dumps(release).encode())),
        "/plugins/kept/run/": ("POST", lambda _text, _: Response(201, json.dumps({"id": token}).encode())),
    }
    for path, (method, make) in reactions.items():
        stack.enter_context(harness.proxy.intercept(method, path, echoing.reaction(make, 100)))
    jobs = []
    for params in (
        harness.to_task_params(project),
        harness.to_task_params(harness.new_project(1), method="inference", pre_processor=98, model=1),
    ):
        jobs.append(harness.new_job(plugin="echo@1.0.0", action="to_task"))
        harness.send_task("to_task", "to_task", {"job": jobs[-1], "plugin": "echo@1.0.0", "params": params})
    return jobs


def start_runs_with_hostile_pre_processors(
    harness: ProxiedHarness, echoing: EchoingResponses, stack: ExitStack
) -> list[str]:
    jobs: list[str] = []
    for number, make in enumerate(VARIANTS.values()):
        code = f"pre{number}"
        release = harness.state.value("SELECT id FROM plugin_releases WHERE code = ?", code)
        for method, path in (
            ("GET", f"/plugin_releases/{release}/"),
            ("GET", f"/serve_applications/\\?.*plugin_code={code}"),
            ("POST", f"/plugins/{code}/run/"),
        ):
            stack.enter_context(harness.proxy.intercept(method, path, echoing.reaction(make, 3)))
        params = harness.to_task_params(
            harness.new_project(1), method="inference", pre_processor=release, model=1
        )
        job = harness.new_job(plugin="echo@1.0.0", action="to_task")
        harness.send_task("to_task", "to_task", {"job": job, "plugin": "echo@1.0.0", "params": params})
        jobs.append(job)
    return jobs


@pytest.mark.slow
@pytest.mark.timeout(3 * WAIT_SECONDS)
def test_no_secret_leaves_the_worker(
    own_harness: ProxiedHarness, redirect_target: tuple[str, list[str]]
) -> None:
    harness, echoing = own_harness, EchoingResponses()
    echoing.redirect_url, redirected = redirect_target
    # Given secrets in every place
    quoted = REDIS_PASSWORD.replace("/", "%2F").replace("+", "%2B")
    url = harness.sandbox.redis_url.replace("redis://", f"redis://:{quoted}@")
    planted = [
        harness.sandbox.access_token,
        harness.sandbox.plugin_token,
        REDIS_PASSWORD,
        quoted,
        AGENT_TOKEN,
        AGENT_PATH,
        AGENT_USER,
        RELEASE_KEY,
        RECEIVER_KEY,
        *FOREIGN_SECRETS.values(),
    ]
    harness.connect(url)
    receiver = OtlpReceiver()
    with RedisMonitor(url) as monitor, task_events(harness.broker_url) as events, ExitStack() as stack:
        stack.callback(receiver.close)
        harness.start_worker(
            WORKER_THREADS,
            REDIS_URL=url,
            RAY_ADDRESS="127.0.0.1:1",
            WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS="3",
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_EXPORTER_OTLP_HEADERS=f"Authorization=Bearer {RECEIVER_KEY}",
        )
        # When every dependency responds with secrets on every path, and a plugin raises errors with them
        agent_ids = stack.enter_context(agents(harness, echoing))
        jobs = start_runs_with_hostile_responses(harness, echoing, stack)
        jobs += start_runs_with_hostile_pre_processors(harness, echoing, stack)
        jobs += start_runs_with_tokens_in_valid_responses(harness, echoing, stack)
        jobs += [_send_to_task(harness, "leaking@1.0.0", count=12)]
        gated = [_send_deploy(harness, "echo@1.0.0", agent) for agent in agent_ids.values()]
        gated += [_send_deploy(harness, "leaking@1.0.0", 1)]
        # (A run whose job has an odd status in a response may end before its first step.)
        for job in jobs + gated:
            harness.wait_for(lambda job=job: _ended(harness, job), f"end of {job}", WAIT_SECONDS)
        # And Redis is restarted without its password, and then gets it again
        harness.sandbox.redis.kill()
        harness.sandbox.redis.start()
        with Redis.from_url(harness.sandbox.redis_url) as open_redis:
            # (With its queues in a RabbitMQ only the relay of logs says that.)
            signs = ("AUTH", "Redis", "redis", "log subscriptions not read")
            harness.wait_for(
                lambda: any(sign in harness.worker_log() for sign in signs),
                "the failed authentication in the log",
                WAIT_SECONDS,
            )
            open_redis.config_set("requirepass", REDIS_PASSWORD)
        job_after_restart = _send_to_task(harness, "echo@1.0.0", count=2)
        assert harness.wait_for_end(job_after_restart, WAIT_SECONDS)["status"] == "SUCCEEDED"
        keys = all_keys(Redis.from_url(url, decode_responses=True, encoding_errors="replace"))

    # Then nothing that leaves the worker contains one of them
    places = {
        "log": harness.worker_log(),
        "commands of Redis": "\n".join(monitor.commands),
        "keys of Redis": repr(keys),
        "task events": repr(events),
        "spans": b"\n".join(receiver.bodies).decode("utf-8", "replace"),
        "bodies": "\n".join(
            request.body.decode("utf-8", "replace")
            for request in harness.proxy.received
            if request.method in ("PATCH", "POST", "PUT")
        ),
        "results": repr(harness.state.rows("SELECT result, progress_record, metrics_record FROM jobs")),
        "user's log": repr(harness.state.rows("SELECT * FROM logs")),
        "redirected requests": repr(redirected),
    }
    hits = [
        (place, secret, text[max(text.find(secret) - 300, 0) :][:700])
        for place, found in places.items()
        for text in [with_base64_decoded(found)]
        for secret in planted
        if secret in text
    ]
    if hits:
        raise AssertionError(json.dumps([[p, s, t] for p, s, t in hits], indent=1))
    assert redirected == []
    # And the search was effective: the places have the expected content, and responses had secrets
    assert with_base64_decoded(_base64_of("hush-me-not")).find("hush-me-not") > 0
    assert "LeakingError" in places["log"]
    assert "LeakingError" in places["spans"]
    assert "LeakingError" in places["bodies"]
    assert "***" in places["log"]
    assert "Serve deploy denied" in places["bodies"]
    assert "agent unreachable" in places["keys of Redis"] + places["commands of Redis"]
    assert {event["type"] for event in events} >= {"task-received", "task-succeeded", "task-retried"}
    assert echoing.count > 120
    print(f"{len(planted)} secrets planted in {echoing.count} responses, 0 found")


def _base64_of(text: str) -> str:
    return base64.b64encode(f"some text around {text} and more of it".encode()).decode()


def _send_to_task(harness: ProxiedHarness, plugin: str, count: int) -> str:
    job = harness.new_job(plugin=plugin, action="to_task")
    message = {"job": job, "plugin": plugin, "params": harness.to_task_params(harness.new_project(count))}
    harness.send_task("to_task", "to_task", message)
    return job


def _send_deploy(harness: ProxiedHarness, plugin: str, agent: int) -> str:
    job = harness.new_job(plugin=plugin, action="deployment")
    message = DeployMessage.model_validate({"job": job, "plugin": plugin, "agent": agent})
    harness.send_task("deploy", "deploy", message.model_dump(mode="json", exclude_unset=True))
    return job


def _ended(harness: ProxiedHarness, job: str) -> bool:
    return bool(re.fullmatch("STOPPED|FAILED|SUCCEEDED", str(harness.job(job)["status"])))
