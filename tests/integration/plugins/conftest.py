"""A real Ray of this module's own, and releases to run on it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest

from worker.deploy.cluster import RayCluster
from worker.plugins import PluginHostUnavailableError, PluginStore, RayHost
from worker.plugins.package import RayPackages
from worker.plugins.ray_driver import RayConnection
from worker.sandbox.local_ray import LocalRay
from worker.sandbox.processes import wait_for

SERVE = """
    from fastapi import FastAPI
    from worker.actions import BaseServeDeployment
    from plugin.words import WORD

    app = FastAPI()

    class Model(BaseServeDeployment):
        app = app

        @app.get("/")
        async def word(self) -> dict:
            return {"word": WORD, "url": self.backend_url}

        @app.post("/")
        async def double(self, body: dict) -> dict:
            return {"word": WORD, "doubled": body["n"] * 2}
"""

PLAIN = """
    from worker.actions import BaseServeDeployment

    class Plain(BaseServeDeployment):
        async def infer(self, body):
            return {"got": body, "batched": self.batched}

        async def infer_batch(self, bodies):
            if any(body["n"] == 13 for body in bodies):
                raise ValueError("13 is unlucky")
            return [{"got": body, "of": len(bodies), "batched": self.batched} for body in bodies]

    class Broken:
        def __init__(self):
            raise ValueError("the weights are gone")
"""

FORMS = """
    from ray import serve

    def handler(request):
        return "handler"

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
    class Declared:
        def __init__(self, backend_url):
            self.url = backend_url

        def __call__(self, request):
            return self.url

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Front:
        def __init__(self, behind):
            self.behind = behind

        async def __call__(self, request):
            return await self.behind.remote(None)

    def build():
        return Front.bind(Declared.bind("behind"))

    bound = Declared.bind("bound")
"""

TO_TASK = """
    import os, time
    from plugin.words import WORD
    from worker.actions import ToTaskAction

    AT_IMPORT = "RAY_AUTH_TOKEN" in os.environ

    class ToTask(ToTaskAction):
        def convert_data_from_inference(self, inference_data, task_data=None):
            if inference_data == "use ray":
                import ray
                seven = ray.get(ray.remote(num_cpus=0)(lambda: 7).remote(), timeout=60)
                return {"seven": seven, "token": AT_IMPORT or "RAY_AUTH_TOKEN" in os.environ}
            if inference_data == "die":
                os._exit(1)
            if inference_data == "sleep":
                time.sleep(60)
            return {"word": WORD, "value": inference_data["value"], "pid": os.getpid()}
"""

CONFIG = """
    code: {code}
    version: "1.0.0"
    actions:
      deployment: {{entrypoint: plugin.serve.Model}}
      plain: {{entrypoint: "plugin.plain:Plain", serve_options: {{batch: {{max_batch_size: 4}}}}}}
      broken: {{entrypoint: plugin.plain.Broken}}
      to_task: {{entrypoint: plugin.to_task.ToTask}}
      handler: {{entrypoint: plugin.forms.handler}}
      declared: {{entrypoint: plugin.forms.Declared}}
      build: {{entrypoint: plugin.forms.build}}
      bound: {{entrypoint: plugin.forms.bound}}
"""


def write_release(store: Path, code: str) -> None:
    """A release whose package is called `plugin`, like everybody's."""
    folder = store / f"{code}@1.0.0" / "plugin"
    folder.mkdir(parents=True)
    (folder.parent / "config.yaml").write_text(dedent(CONFIG.format(code=code)))
    (folder / "__init__.py").touch()
    (folder / "words.py").write_text(f"WORD = {code!r}\n")
    for name, text in {"serve": SERVE, "plain": PLAIN, "forms": FORMS, "to_task": TO_TASK}.items():
        (folder / f"{name}.py").write_text(dedent(text))


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    local = LocalRay(tmp_path_factory.mktemp("ray"), num_cpus=4)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in local.environment().items():
            patch.setenv(name, value)
        local.launch()
        try:
            local.await_ready()
            yield local
        finally:
            local.stop()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PluginStore:
    folder = tmp_path_factory.mktemp("plugins")
    for code in ("apple", "pear", "plum"):
        write_release(folder, code)
    return PluginStore(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", params=["on a node", pytest.param("by Ray Client", marks=pytest.mark.ray)])
def connection(ray_cluster: LocalRay, request: pytest.FixtureRequest) -> Iterator[RayConnection]:
    is_on_node = request.param == "on a node"
    made = RayConnection(ray_cluster.address if is_on_node else ray_cluster.client_address)

    def connects() -> bool:
        # A busy head is given up by Ray Client's server after 30 s; a worker's steps try again, too.
        with suppress(PluginHostUnavailableError):
            made.connect()
            return True
        return False

    wait_for(connects, 300, "a connection to Ray")
    yield made
    made.close()


@pytest.fixture(scope="module")
def ray_host(connection: RayConnection) -> Iterator[RayHost]:
    host = RayHost(connection, RayPackages(connection), timeout=60)
    yield host
    host.close()


@pytest.fixture(scope="module")
def cluster(connection: RayConnection) -> RayCluster:
    return RayCluster(connection)
