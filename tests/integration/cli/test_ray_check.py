"""The check of a Ray cluster that cannot be used ends within its timeout."""

import socket
import time

import pytest

from worker.cli import cluster
from worker.plugins import PluginHostUnavailableError


def test_unreachable_ray_is_an_error() -> None:
    with pytest.raises(PluginHostUnavailableError, match="cannot be reached"):
        cluster.check_cluster("127.0.0.1:9")


def test_silent_ray_is_an_error_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a server that accepts connections and never answers
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()

        # When it is checked, then the check fails in time
        with pytest.raises(PluginHostUnavailableError, match="no answer within 3 s; is this the port of"):
            cluster.check_cluster(f"ray://127.0.0.1:{server.getsockname()[1]}")

    assert time.monotonic() - started < 60  # the import of Ray takes its time as well
