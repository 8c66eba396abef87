"""Which agent the worker's own client is of."""

from pathlib import Path
from typing import Any

from worker.agents import Agents
from worker.platform.streams import StreamLimits
from worker.settings import Settings
from worker.testing import FakeBackend

KNOWN = {"url": "http://looked-up.test", "token": "hush"}


class Backend:
    def get_agent(self, agent: int) -> dict[str, Any]:
        return {"id": agent, **KNOWN}


def url_of(folder: Path, agent: int, **settings: Any) -> str:
    given: dict[str, Any] = {
        "synapse_host": "http://backend.test",
        "synapse_access_token": "token-of-the-worker",
        "plugins_dir": folder,
        "synapse_agent_url": "http://configured.test",
        **settings,
    }
    backend: Any = Backend()
    client = Agents(Settings(**given), lambda tenant: backend, StreamLimits()).client(agent, None)
    assert client is not None
    return client._base._root


def test_the_configured_agent_is_every_one_where_none_is_named(tmp_path: Path) -> None:
    assert url_of(tmp_path, 2) == "http://configured.test/"


def test_beside_worker_agent_it_is_that_one_alone(tmp_path: Path) -> None:
    assert url_of(tmp_path, 1, worker_agent=1) == "http://configured.test/"
    assert url_of(tmp_path, 2, worker_agent=1) == "http://looked-up.test/"


def test_an_agent_that_the_backend_lacks_is_none(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "synapse_host": "http://backend.test",
        "synapse_access_token": "token-of-the-worker",
        "plugins_dir": tmp_path,
    }
    backend: Any = FakeBackend()

    assert Agents(Settings(**given), lambda tenant: backend, StreamLimits()).client(4, None) is None
