"""Releases on a real Ray: served side by side, replaced, converted, killed."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from fakeredis import FakeRedis

from tests.harness.proxy_trap import proxy_trap
from worker.deploy.cluster import RayCluster
from worker.deploy.packages import DeployedPackages
from worker.plugins import (
    ClientAccess,
    PluginCallError,
    PluginHostUnavailableError,
    PluginStore,
    PluginTimeoutError,
    RayHost,
    Release,
    request_for,
)
from worker.plugins.package import FolderPackages, RayPackages
from worker.plugins.ray_driver import RayConnection, operations
from worker.sandbox.local_ray import LocalRay
from worker.sandbox.processes import wait_for
from worker.services import Services

ACCESS = ClientAccess(host="http://backend.test")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:ray.*")


class RecordingHost:
    """A host that records which packages it pins, and whether they are there."""

    def __init__(self, host: RayHost, kept: list[tuple[str, bool]]) -> None:
        self._host, self._kept = host, kept

    def pin(self, package: str) -> bool:
        is_there = self._host.pin(package)
        self._kept.append((package, is_there))
        return is_there

    def restore(self, package: str, release: Release) -> bool:
        raise AssertionError("no package is gone")


def submit(
    host: RayHost, store: PluginStore, name: str, action: str = "deployment", **params: Any
) -> dict[str, Any]:
    release = store.get(name)
    request = request_for(release, action, {"num_cpus": 0.5, **params}, ACCESS)
    plan = host.call(release, request, "plan", {})
    return plan | host.call(release, request, "submit", plan)


def await_bucket(cluster: RayCluster, name: str, wanted: str, seconds: float = 90) -> str:
    deadline = time.monotonic() + seconds
    while True:
        state = cluster.state(name)
        if state.bucket == wanted:
            return state.reason
        assert time.monotonic() < deadline, (name, state)
        time.sleep(0.2)


def remove(cluster: RayCluster, *names: str) -> None:
    for name in names:
        cluster.remove(name)
    wait_for(lambda: not any(cluster.state(name).exists for name in names), 60, f"removal of {names}")


def test_releases_with_the_same_package_serve_their_own_code(
    ray_host: RayHost, store: PluginStore, cluster: RayCluster, ray_cluster: LocalRay
) -> None:
    plans = {code: submit(ray_host, store, f"{code}@1.0.0") for code in ("apple", "pear")}
    for code, plan in plans.items():
        assert plan["submitted"]
        assert not plan["replaced"]
        await_bucket(cluster, f"{code}@1.0.0", "running")
    for code, plan in plans.items():
        url = f"{ray_cluster.serve_url}{plan['route_prefix']}/"
        assert httpx.get(url).json() == {"word": code, "url": "http://backend.test"}
        assert httpx.post(url, json={"n": 21}).json() == {"word": code, "doubled": 42}


def test_only_a_changed_deployment_replaces_a_running_one(
    ray_host: RayHost, store: PluginStore, cluster: RayCluster, ray_cluster: LocalRay
) -> None:
    await_bucket(cluster, "apple@1.0.0", "running")
    again = submit(ray_host, store, "apple@1.0.0")
    assert (again["submitted"], again["reason"]) == (False, "identical")
    changed = submit(ray_host, store, "apple@1.0.0", num_cpus=0.25)
    assert changed["submitted"]
    assert changed["replaced"]
    assert "serves until the new one is ready" in changed["messages"][0]
    url = f"{ray_cluster.serve_url}{changed['route_prefix']}/"
    while cluster.state("apple@1.0.0").status != "RUNNING":
        assert httpx.get(url, timeout=5).status_code == 200
    assert httpx.get(url).json()["word"] == "apple"
    remove(cluster, "apple@1.0.0", "pear@1.0.0")


def test_class_without_routes_answers_with_infer_batch(
    ray_host: RayHost, store: PluginStore, cluster: RayCluster, ray_cluster: LocalRay
) -> None:
    plan = submit(ray_host, store, "pear@1.0.0", "plain")
    await_bucket(cluster, "pear@1.0.0", "running")
    url = f"{ray_cluster.serve_url}{plan['route_prefix']}/"
    answer = httpx.post(url, json={"n": 1}).json()
    assert answer == {"got": {"n": 1}, "of": 1, "batched": True}
    # One of several inputs that fails does not fail the others, with which it may be in a batch
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: httpx.post(url, json={"n": n}, timeout=30), (1, 13, 2, 3)))
    assert [each.status_code for each in answers] == [200, 500, 200, 200]
    assert answers[1].json() == {"detail": "ValueError: 13 is unlucky"}
    remove(cluster, "pear@1.0.0")


def test_every_form_of_entrypoint_is_served(
    ray_host: RayHost, store: PluginStore, cluster: RayCluster, ray_cluster: LocalRay
) -> None:
    expected = {"handler": "handler", "declared": "http://backend.test", "build": "behind", "bound": "bound"}
    release = store.get("pear@1.0.0")
    for form in expected:
        request = request_for(release, form, {"num_cpus": 0.1}, ACCESS)
        plan = ray_host.call(release, request, "plan", {}) | {"app_name": form, "route_prefix": f"/{form}"}
        assert ray_host.call(release, request, "submit", plan)["submitted"]
    for form, answer in expected.items():
        await_bucket(cluster, form, "running")
        assert httpx.get(f"{ray_cluster.serve_url}/{form}").text == answer
    request = request_for(release, "build", {"num_cpus": 0.1}, ACCESS)
    plan = ray_host.call(release, request, "plan", {}) | {"app_name": "build", "route_prefix": "/build"}
    assert ray_host.call(release, request, "submit", plan)["reason"] == "identical"
    remove(cluster, *expected)


def test_reason_of_a_failure_is_only_the_authors(
    ray_host: RayHost, store: PluginStore, cluster: RayCluster
) -> None:
    submit(ray_host, store, "apple@1.0.0", "broken")
    reason = await_bucket(cluster, "apple@1.0.0", "failed")
    assert "ValueError: the weights are gone" in reason
    assert "plugin/plain.py" in reason
    assert "127.0.0" not in reason
    assert "/tmp" not in reason
    assert "\x1b" not in reason
    remove(cluster, "apple@1.0.0")


@pytest.mark.ray
def test_dead_actor_of_conversions_is_replaced(ray_host: RayHost, store: PluginStore) -> None:
    def convert(code: str, *items: Any) -> Any:
        release = store.get(f"{code}@1.0.0")
        request = request_for(release, "to_task", {}, ACCESS)
        request = replace(
            request, params={"name": "n", "project": 1, "agent": 1, "target_specification_name": "x"}
        )
        return ray_host.call_batch(
            release, request, "convert_from_inference", [{"inference_data": item} for item in items]
        )

    first = convert("apple", {"value": 1}, {})
    assert first[0]["ok"]["word"] == "apple"
    assert first[1] == {"error": "KeyError: 'value'"}
    assert convert("pear", {"value": 1})[0]["ok"]["word"] == "pear"
    second = convert("apple", {"value": 2})
    assert second[0]["ok"]["pid"] == first[0]["ok"]["pid"]
    with pytest.raises(PluginCallError, match=r"the process of apple@1\.0\.0 died"):
        convert("apple", "die")
    third = convert("apple", {"value": 3})
    assert third[0]["ok"]["pid"] != first[0]["ok"]["pid"]
    ray_host._timeout, before = 1.0, ray_host._timeout
    try:
        with pytest.raises(PluginTimeoutError, match="longer than 1 s"):
            convert("apple", "sleep")
    finally:
        ray_host._timeout = before
    assert convert("apple", {"value": 4})[0]["ok"]["value"] == 4


def test_plugin_code_uses_ray_without_the_token_of_the_cluster(
    ray_host: RayHost, store: PluginStore, ray_cluster: LocalRay
) -> None:
    # Given a cluster whose processes inherit its token
    assert ray_cluster.environment()["RAY_AUTH_TOKEN"]
    release = store.get("apple@1.0.0")
    params = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "x"}
    request = request_for(release, "to_task", params, ACCESS)
    items = [{"inference_data": "use ray"}]

    # When plugin code looks for it, then Ray works there, and it is not in its environment
    for call in (ray_host.call, ray_host.call_batch):
        assert call(release, request, "convert_from_inference", items) == [
            {"ok": {"seven": 7, "token": False}}
        ]


def test_signals_for_the_worker_leave_a_connected_driver_alone(connection: RayConnection) -> None:
    # Given a driver process in which Ray has set handlers of its own, which print a stack and end the process
    pid = connection.call(os.getpid, timeout=60)

    # When a process manager signals all processes of the worker
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)

    # Then it goes on, for the worker's last tasks
    assert connection.call(operations.has_local_node, timeout=60) is not None
    assert connection.call(os.getpid, timeout=60) == pid


def test_a_call_finds_the_process_of_a_warm_up(ray_host: RayHost, store: PluginStore) -> None:
    # Given a release without a process
    ray_host.close()
    release = store.get("pear@1.0.0")
    request = request_for(release, "to_task", {"name": "n", "project": 1, "agent": 1}, ACCESS)
    request = replace(request, params={**request.params, "target_specification_name": "x"})

    def processes() -> list[str]:
        return [actor.id for actor in ray_host._actors.values() if actor.has_started and not actor.calls]

    # When it is warmed up
    ray_host.warm_up(release, request)
    wait_for(lambda: bool(processes()), 60, "the process of the warm-up")
    [process] = processes()

    # Then the first call is answered by its process
    items = [{"inference_data": {"value": 1}}]
    [answer] = ray_host.call_batch(release, request, "convert_from_inference", items)
    assert answer["ok"]["word"] == "pear"
    assert processes() == [process]


@pytest.mark.ray
def test_a_new_start_of_serve_is_noticed(
    ray_host: RayHost, store: PluginStore, cluster: RayCluster, ray_cluster: LocalRay
) -> None:
    # Given a connection that has asked Serve
    cluster.state("pear@1.0.0")

    # When Serve is shut down and started anew
    ray_cluster.restart_serve()

    # Then the same connection deploys and sees what it has deployed
    submit(ray_host, store, "pear@1.0.0", "plain")
    await_bucket(cluster, "pear@1.0.0", "running")
    assert cluster.state("pear@1.0.0").status == "RUNNING"
    remove(cluster, "pear@1.0.0")


def test_package_store_can_be_a_folder(connection: RayConnection, store: PluginStore, tmp_path: Path) -> None:
    host = RayHost(connection, FolderPackages(tmp_path), timeout=60)
    release = store.get("pear@1.0.0")
    plan = host.call(release, request_for(release, "deployment", {}, ACCESS), "plan", {})
    assert plan["app_name"] == "pear@1.0.0"
    assert plan["route_prefix"] == f"/{release.checksum}"


def test_address_without_a_listener_fails_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(PluginHostUnavailableError, match="cannot be reached"):
        RayConnection("127.0.0.1:1").connect()
    assert time.monotonic() - started < 5


@pytest.mark.ray
def test_what_runs_is_pinned_though_its_release_is_another(
    ray_host: RayHost, store: PluginStore, cluster: RayCluster, connection: RayConnection, tmp_path: Path
) -> None:
    # Given an application, and other content for its release since
    kept: list[tuple[str, bool]] = []
    host = RecordingHost(ray_host, kept)
    redis = FakeRedis(decode_responses=True)
    settings = SimpleNamespace(worker_agent=None, ray_address=connection.address)
    deployed = DeployedPackages(
        cast(
            Services,
            SimpleNamespace(settings=settings, redis=redis, ray=connection, host=host, store=store),
        )
    )

    def pinned() -> list[tuple[str, bool]]:
        kept.clear()
        redis.delete("synapse:deployed:{any}:pinned")
        deployed.pin()
        return list(kept)

    submit(ray_host, store, "plum@1.0.0", num_cpus=0.1)
    deployed.add("plum@1.0.0", "plum@1.0.0")
    await_bucket(cluster, "plum@1.0.0", "running")
    words = store.get("plum@1.0.0").path / "plugin" / "words.py"
    release = store.get("plum@1.0.0")
    old = RayPackages(connection).ensure(release)
    words.write_text(f"WORD = {uuid4().hex!r}\n")
    wait_for(lambda: store.get("plum@1.0.0").checksum != release.checksum, 60, "the other content")
    new = RayPackages(connection).ensure(store.get("plum@1.0.0"))

    # Then what runs is pinned, and still there
    assert pinned() == [(old, True)]

    # When the other content is deployed, then both are pinned, because the old one can be rolled back to
    submit(ray_host, store, "plum@1.0.0", num_cpus=0.1)
    wait_for(lambda: sorted(pinned()) == sorted([(old, True), (new, True)]), 60, "the pins of both contents")

    # And when the application is removed with what is kept of it, none is
    cluster.undeploy("plum@1.0.0")
    submit(ray_host, store, "apple@1.0.0")
    wait_for(lambda: pinned() == [], 60, "no pin")
    remove(cluster, "apple@1.0.0")


def test_nothing_goes_through_a_proxy_of_the_environment(
    connection: RayConnection, store: PluginStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker in whose environment all proxies are set
    with proxy_trap(monkeypatch) as sent:
        made = RayConnection(connection.address)
        # Ray Client's server may take longer to start a driver's process than a worker waits at a time.
        made.connect(timeout=150)

        # When it uploads a package with Ray's token, then the proxy sees nothing
        assert RayPackages(made).ensure(store.get("plum@1.0.0"))
        assert not RayCluster(made).state("nobody@1.0.0").exists
        made.close()
    assert sent == []
