"""Secrets are planted wherever a dependency or a plugin could say them; none of them leaves the worker.

Planted: the worker's tokens (each hostile answer echoes all headers of its request, in its body and headers),
the password of Redis, tokens and addresses of agents, a release's own key, and what a remote says of its own.
"""

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
from tests.integration.safety.proxy import Answer, Proxy, Reaction, Received
from tests.integration.safety.site import Site
from tests.integration.safety.watch import Commands, held, task_events, unpacked
from worker.sandbox.seed import seed_agent

REDIS_PASSWORD = "hush-redis+pa/ss-71c4"
AGENT_TOKEN = "hush-agent-token-52d9"
AGENT_PATH = "hush-agent-path-90aa"
AGENT_USER = "hush-agent-user-17ee"
RELEASE_KEY = "hush-release-key-33b0"
REMOTE = {
    "password=": "hush-remote-password-1",
    '"token": "': "hush-remote-token-2",
    "https://u:": "hush-remote-userinfo-3",
    "?X-Amz-Signature=": "hush-remote-signature-4",
    "Authorization: Bearer ": "hush-remote-bearer-5",
    "api_key=": "hush-remote-key-6",
}
CONFESSION = (
    'my password=hush-remote-password-1, {"token": "hush-remote-token-2"}, https://u:hush-remote-userinfo-3@db/x,'
    " http://files/f.png?X-Amz-Signature=hush-remote-signature-4&a=b,"
    " Authorization: Bearer hush-remote-bearer-5, api_key=hush-remote-key-6"
)

TELLTALE = f"""
    import json
    import os

    from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction

    CONFESSION = {CONFESSION!r}


    class TellTaleError(Exception):
        def __init__(self, text):
            super().__init__(text)
            self.token = "hush-remote-token-2"


    def tell():
        raise TellTaleError(json.dumps(dict(os.environ)) + repr(os.environ) + CONFESSION)


    class Served(BaseServeDeployment):
        pass


    class Deployment(BaseDeploymentAction):
        entrypoint = Served

        def get_serve_app_name(self):
            tell()


    class ToTask(ToTaskAction):
        def convert_data_from_file(
            self, primary_file_url, primary_file_name, data_file_url, data_file_name, task_data=None
        ):
            if "0" in data_file_name:
                raise TellTaleError(self.ctx.env["HF_TOKEN"] + " of " + str(dict(self.ctx.env)))
            tell()
"""


class Hostility:
    """Answers that echo what was sent, so many times a rule; then the true backend is heard."""

    def __init__(self) -> None:
        self.answers = 0
        self.trap_url = ""

    def reaction(self, make: Any, times: int) -> Reaction:
        left = [times]
        lock = threading.Lock()

        def react(request: Received) -> Answer | None:
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    return None
                self.answers += 1
            answer: Answer = make(self._echo(request), request)
            return Answer(answer.status, answer.body, {**self._headers(request), **answer.headers})

        return react

    def _echo(self, request: Received) -> str:
        return f"you sent {request.headers} {json.dumps(request.headers)} to {request.path}; {CONFESSION}"

    def _headers(self, request: Received) -> dict[str, str]:
        token = request.headers.get("Synapse-Access-Token") or request.headers.get("Authorization") or ""
        return {
            "X-Echo": token,
            "Set-Cookie": f"session={token}",
            "WWW-Authenticate": f"{token} realm={CONFESSION}",
            "Retry-After": token,
            "Location": f"{self.trap_url}/?token={token}",
        }


def of_json(status: int) -> Any:
    return lambda text, _: Answer(status, json.dumps({"detail": text, "token": text}).encode())


VARIANTS: dict[str, Any] = {
    "400 by field": lambda text, _: Answer(400, json.dumps({"name": [text], text: ["wrong"]}).encode()),
    "403 as text": lambda text, _: Answer(403, text.encode()),
    "404": of_json(404),
    "302": of_json(302),
    "500 as HTML": lambda text, _: Answer(500, f"<html>{text}</html>".encode()),
    "429": of_json(429),
    "200 not JSON": lambda text, _: Answer(200, text.encode()),
    "200 a list": lambda text, _: Answer(200, json.dumps([text]).encode()),
    "200 of odd values": lambda text, _: Answer(
        200,
        json.dumps(
            dict.fromkeys(["id", "status", "data_collection", "results", "next", "data_unit", "config"], text)
        ).encode(),
    ),
}
ENDPOINTS = {
    "job": ("GET", "/jobs/{job}/"),
    "progress": ("PATCH", "/jobs/{job}/"),
    "project": ("GET", "/projects/{project}/"),
    "collection": ("GET", "/data_collections/{collection}/"),
    "list": ("GET", r"/sdk/tasks/\?.*project={project}(&|$)"),
    "task": ("GET", "/tasks/{task}/"),
    "write": ("PUT", "/tasks/{task}/annotate"),
}


@pytest.fixture
def trap() -> Iterator[tuple[str, list[str]]]:
    """Another server, to which redirects and links lead."""
    caught: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            caught.append(f"{self.path} {self.headers}")
            self.send_response(200)
            self.end_headers()

        do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", caught
        server.shutdown()
        thread.join(5)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Site]:
    """A site of its own, whose Redis asks for a password and whose worker looks agents up."""
    site = Site(tmp_path)
    try:
        site.install("telltale", TELLTALE, env={"HF_TOKEN": RELEASE_KEY})
        for number in range(len(VARIANTS)):
            site.install(f"pre{number}", ECHO_SERVED)
        site.sandbox.start()
        with Redis.from_url(site.sandbox.redis_url) as redis:
            redis.config_set("requirepass", REDIS_PASSWORD)
        yield site
    finally:
        site.close()


ECHO_SERVED = "class Served: ...\n"


@contextmanager
def agents(site: Site, hostility: Hostility) -> Iterator[dict[str, int]]:
    """Agents of every kind of malice, by what they do."""
    made: dict[str, int] = {}
    denials = {
        "allowed": False,
        "reasons": [CONFESSION, f"{AGENT_TOKEN} may not", f"http://a/{AGENT_PATH}?x=1"],
    }
    answers: dict[str, Any] = {
        **VARIANTS,
        "denies": lambda _text, _: Answer(200, json.dumps(denials).encode()),
    }
    with ExitStack() as stack:
        for number, (name, make) in enumerate(answers.items(), start=10):
            agent = Proxy("http://127.0.0.1:1")
            stack.callback(agent.close)
            stack.enter_context(agent.spoilt("POST", "/", hostility.reaction(make, 1000)))
            seed_agent(site.state, id=number, url=f"{agent.url}/{AGENT_PATH}", token=AGENT_TOKEN)
            made[name] = number
        url = f"http://{AGENT_USER}:{AGENT_TOKEN}@127.0.0.1:1/{AGENT_PATH}"
        made["userinfo"] = seed_agent(site.state, id=90, url=url, token=AGENT_TOKEN)
        made["away"] = seed_agent(
            site.state, id=91, url=f"http://127.0.0.1:1/{AGENT_PATH}", token=AGENT_TOKEN
        )
        made["token of two lines"] = seed_agent(
            site.state, id=92, url="http://127.0.0.1:1", token="a\nb" + AGENT_TOKEN
        )
        made["no URL at all"] = seed_agent(
            site.state, id=93, url=f"{AGENT_PATH}?{AGENT_TOKEN}", token=AGENT_TOKEN
        )
        yield made


def spoil_everything(site: Site, hostility: Hostility, stack: ExitStack) -> list[str]:
    """A run for each endpoint and each kind of answer; their jobs."""
    jobs: list[str] = []
    for make in VARIANTS.values():
        for name, (method, path) in ENDPOINTS.items():
            project, job = site.project(2), site.new_job(plugin="echo@1.0.0", action="to_task")
            where = path.format(
                job=job, project=project.id, collection=project.data_collection, task=project.tasks[0]
            )
            times = 1 if name == "progress" else 3
            stack.enter_context(site.proxy.spoilt(method, where, hostility.reaction(make, times)))
            message = {"job": job, "plugin": "echo@1.0.0", "params": site.params(project)}
            site.bare("to_task", "to_task", message)
            jobs.append(job)
    return jobs


def spoil_with_good_answers(site: Site, hostility: Hostility, stack: ExitStack) -> list[str]:
    """Answers that are in order, but for the worker's token in places that it keeps or passes on."""
    token = site.sandbox.access_token

    def linked(_text: str, request: Received) -> Answer:
        page = {"results": [{"id": 1}], "next": f"{site.proxy.url}/sdk/tasks/?page=2&access={token}"}
        return Answer(200, json.dumps(page).encode())

    release = {"id": 1, "version": "1.0.0", "config": {"code": "kept", "note": token, token: [token]}}
    project = site.project(1)
    answers = {
        f"/sdk/tasks/\\?.*project={project.id}(&|$)": ("GET", linked),
        "/plugin_releases/98/": ("GET", lambda _text, _: Answer(200, json.dumps(release).encode())),
        "/plugins/kept/run/": ("POST", lambda _text, _: Answer(201, json.dumps({"id": token}).encode())),
    }
    for path, (method, make) in answers.items():
        stack.enter_context(site.proxy.spoilt(method, path, hostility.reaction(make, 100)))
    jobs = []
    for params in (
        site.params(project),
        site.params(site.project(1), method="inference", pre_processor=98, model=1),
    ):
        jobs.append(site.new_job(plugin="echo@1.0.0", action="to_task"))
        site.bare("to_task", "to_task", {"job": jobs[-1], "plugin": "echo@1.0.0", "params": params})
    return jobs


def spoil_pre_processors(site: Site, hostility: Hostility, stack: ExitStack) -> list[str]:
    jobs: list[str] = []
    for number, make in enumerate(VARIANTS.values()):
        code = f"pre{number}"
        release = site.state.value("SELECT id FROM plugin_releases WHERE code = ?", code)
        for method, path in (
            ("GET", f"/plugin_releases/{release}/"),
            ("GET", f"/serve_applications/\\?.*plugin_code={code}"),
            ("POST", f"/plugins/{code}/run/"),
        ):
            stack.enter_context(site.proxy.spoilt(method, path, hostility.reaction(make, 3)))
        params = site.params(site.project(1), method="inference", pre_processor=release, model=1)
        job = site.new_job(plugin="echo@1.0.0", action="to_task")
        site.bare("to_task", "to_task", {"job": job, "plugin": "echo@1.0.0", "params": params})
        jobs.append(job)
    return jobs


@pytest.mark.timeout(180)
def test_no_secret_leaves_the_worker(guarded: Site, trap: tuple[str, list[str]]) -> None:
    site, hostility = guarded, Hostility()
    hostility.trap_url, caught = trap
    # Given secrets everywhere
    quoted = REDIS_PASSWORD.replace("/", "%2F").replace("+", "%2B")
    url = site.sandbox.redis_url.replace("redis://", f"redis://:{quoted}@")
    planted = [
        site.sandbox.access_token,
        site.sandbox.plugin_token,
        REDIS_PASSWORD,
        quoted,
        AGENT_TOKEN,
        AGENT_PATH,
        AGENT_USER,
        RELEASE_KEY,
        *REMOTE.values(),
    ]
    site.state, site.redis = site.sandbox.state, Redis.from_url(url, decode_responses=True)
    site.app = _publisher(url)
    with Commands(url) as commands, task_events(url) as events, ExitStack() as stack:
        site.start_worker(REDIS_URL=url, RAY_ADDRESS="127.0.0.1:1", WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS="3")
        # When every dependency and a plugin are hostile on every path
        known_agents = stack.enter_context(agents(site, hostility))
        jobs = spoil_everything(site, hostility, stack) + spoil_pre_processors(site, hostility, stack)
        jobs += spoil_with_good_answers(site, hostility, stack)
        jobs += [_bare_to_task(site, "telltale@1.0.0", count=12)]
        gated = [_bare_deploy(site, "echo@1.0.0", agent) for agent in known_agents.values()]
        gated += [_bare_deploy(site, "telltale@1.0.0", 1)]
        # (a job that the backend calls odd things may have been ended before it ran)
        for job in jobs + gated:
            site.wait(lambda job=job: _ended(site, job), f"end of {job}", 60)
        # And Redis goes away and is retried without its password, and with it
        site.sandbox.redis.kill()
        site.sandbox.redis.start()
        with Redis.from_url(site.sandbox.redis_url) as open_redis:
            site.wait(lambda: "AUTH" in site.log() or "redis" in site.log().lower(), "somebody noticed")
            open_redis.config_set("requirepass", REDIS_PASSWORD)
        again = _bare_to_task(site, "echo@1.0.0", count=2)
        assert site.end_of(again, 40)["status"] == "SUCCEEDED"
        kept = held(Redis.from_url(url, decode_responses=True, encoding_errors="replace"))

    # Then nothing of what leaves the worker has one of them
    places = {
        "log": site.log(),
        "commands of Redis": "\n".join(commands.seen),
        "keys of Redis": repr(kept),
        "task events": repr(events),
        "bodies": "\n".join(
            request.body.decode("utf-8", "replace")
            for request in site.proxy.received
            if request.method in ("PATCH", "POST", "PUT")
        ),
        "results": repr(site.state.rows("SELECT result, progress_record, metrics_record FROM jobs")),
        "user's log": repr(site.state.rows("SELECT * FROM logs")),
        "the trap": repr(caught),
    }
    hits = [
        (place, secret, text[max(text.find(secret) - 300, 0) :][:700])
        for place, found in places.items()
        for text in [unpacked(found)]
        for secret in planted
        if secret in text
    ]
    if hits:
        raise AssertionError(json.dumps([[p, s, t] for p, s, t in hits], indent=1))
    assert caught == []
    # And the search was no idle one: the places hold what they should, and secrets had been said
    assert unpacked(_packed("hush-me-not")).find("hush-me-not") > 0
    assert "TellTaleError" in places["log"]
    assert "TellTaleError" in places["bodies"]
    assert "***" in places["log"]
    assert "Serve deploy denied" in places["bodies"]
    assert "agent unreachable" in places["keys of Redis"] + places["commands of Redis"]
    assert {event["type"] for event in events} >= {"task-received", "task-succeeded", "task-retried"}
    assert hostility.answers > 120
    print(f"planted {len(planted)}, said by {hostility.answers} answers, found 0")


def _publisher(url: str) -> Any:
    from celery import Celery

    app = Celery("publisher", broker=url, set_as_current=False)
    app.conf.update(task_ignore_result=True)
    return app


def _packed(text: str) -> str:
    import base64

    return base64.b64encode(f"some text around {text} and more of it".encode()).decode()


def _bare_to_task(site: Site, plugin: str, count: int) -> str:
    job = site.new_job(plugin=plugin, action="to_task")
    message = {"job": job, "plugin": plugin, "params": site.params(site.project(count))}
    site.bare("to_task", "to_task", message)
    return job


def _bare_deploy(site: Site, plugin: str, agent: int) -> str:
    job = site.new_job(plugin=plugin, action="deployment")
    message = DeployMessage.model_validate({"job": job, "plugin": plugin, "agent": agent})
    site.bare("deploy", "deploy", message.model_dump(mode="json", exclude_unset=True))
    return job


def _ended(site: Site, job: str) -> bool:
    return bool(re.fullmatch("STOPPED|FAILED|SUCCEEDED", str(site.job(job)["status"])))
