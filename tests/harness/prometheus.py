"""A real Prometheus, Debian's, for tests of what it scrapes."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

from worker.sandbox.processes import free_port


@contextmanager
def running_prometheus(folder: Path, port: int, **scraping: Any) -> Iterator[str]:
    """The address of one that scrapes a port of this host each second; skips without a Prometheus.

    `scraping`: further keys of its `scrape_config`.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs Prometheus: apt-get install prometheus")
    targets = [{"targets": [f"127.0.0.1:{port}"]}]
    job = {"job_name": "w", "scrape_interval": "1s", "static_configs": targets, **scraping}
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [job]}))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def query(prometheus: str, expression: str) -> float | None:
    """The first value of a query; None while there is none, or Prometheus still starts."""
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, trust_env=False)
    except httpx.TransportError:
        return None
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        return None
    result = answer.json().get("data", {}).get("result", [])
    return float(result[0]["value"][1]) if result else None
