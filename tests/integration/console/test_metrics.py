"""The console's `/metrics` as a real Prometheus scrapes them."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.harness.monitoring_files import expressions
from tests.harness.prometheus import query, running_prometheus
from tests.integration.console.console_harness import ConsoleHarness

TOKEN = "a-token-of-the-tests"
PREFIX = "synapse_worker_console"


@pytest.fixture(scope="module")
def port(harness: ConsoleHarness) -> int:
    """That of a console with a token."""
    return int(urlsplit(harness.sandbox.start_console(env={"WORKER_CONSOLE_TOKEN": TOKEN})).port or 0)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[str]:
    """The address of one that shows the token."""
    folder: Path = tmp_path_factory.mktemp("prometheus")
    (folder / "token").write_text(f"{TOKEN}\n")
    authorization = {"type": "Bearer", "credentials_file": str(folder / "token")}
    with running_prometheus(folder, port, authorization=authorization) as address:
        yield address


def test_prometheus_has_what_the_console_does(harness: ConsoleHarness, port: int, prometheus: str) -> None:
    # Given a browser that listens to all changes, and one that follows a log
    waiting = harness.waiting_run()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{port}/api"
    listening = httpx.Client(headers=headers, trust_env=False, timeout=60)
    with (
        listening.stream("GET", f"{url}/events") as events,
        listening.stream("GET", f"{url}/runs/{waiting}/log"),
    ):
        heard = events.iter_bytes()
        next(heard)

        # When a run goes to its end
        job = harness.to_task(harness.new_project(4))
        harness.wait_for_end(job)
        text = b""
        while b"SUCCEEDED" not in text:
            text = next(heard)

        # Then Prometheus has the streams, what was heard, and that it was sent in less than two seconds
        for expression in (
            f'{PREFIX}_streams{{of="changes"}} == 1',
            f'{PREFIX}_streams{{of="log"}} == 1',
            f'{PREFIX}_changes_total{{of="run"}} > 4',
            f'sum({PREFIX}_runs{{action="to_task"}}) >= 1',
            f'{PREFIX}_send_seconds_bucket{{le="2.0"}} >= 1',
            *(each for each in expressions() if PREFIX in each),
            'synapse_worker_ended_runs{status="SUCCEEDED"} >= 1',
            "sum(synapse_worker_runs_waiting) >= 1",
        ):
            harness.wait_for(lambda now=expression: query(prometheus, now) is not None, expression)

    # And that they are closed again
    closed = f"sum({PREFIX}_streams) == 0"
    harness.wait_for(lambda: query(prometheus, closed) is not None, closed)
    harness.stop(waiting)


def test_nobody_reads_metrics_without_the_token(port: int) -> None:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)

    assert (answer.status_code, "synapse_worker" in answer.text) == (401, False)
