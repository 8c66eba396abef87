"""A Ray that cannot be used is found out within a deadline."""

import socket
import time

import pytest

from worker.cli import ray_check
from worker.plugins import PluginHostUnavailableError


def test_a_ray_that_is_not_there_is_told() -> None:
    with pytest.raises(PluginHostUnavailableError, match="cannot be reached"):
        ray_check.check_cluster("127.0.0.1:9")


def test_a_ray_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given somebody who takes connections and says nothing
    monkeypatch.setattr(ray_check, "CHECK_TIMEOUT_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        begun = time.monotonic()

        # When it is checked, then that ends
        with pytest.raises(PluginHostUnavailableError, match="no answer within 3 s"):
            ray_check.check_cluster(f"127.0.0.1:{server.getsockname()[1]}")

    assert time.monotonic() - begun < 8
