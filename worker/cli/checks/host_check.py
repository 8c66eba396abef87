"""What `doctor` says of this host: its disk, its proxies, the port of metrics, its tokens."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from worker.cli.checks.report import Finding
from worker.plugins.ray_driver.child import PROXIES, RAY_USES_PROXY, drop_proxies
from worker.settings import MB, Settings

MIN_FREE_BYTES: Final = 100 * MB
"""Below that a worker cannot be expected to work: it unpacks releases, and writes its state and its logs."""

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1")
PORT_TIMEOUT_SECONDS: Final = 2.0


def check_disk(settings: Settings) -> Iterator[Finding]:
    """The folders in which a worker writes."""
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:
        yield Finding("no temporary directory can be written: set TMPDIR to a folder with free space")
        return
    yield from _folder(temporary, settings.worker_plugin_max_mb * MB, "set TMPDIR to another folder")
    if (store := settings.worker_package_store) is not None:
        advice = "set WORKER_PACKAGE_STORE to a folder that all nodes can read and workers can write"
        yield from _folder(Path(store), settings.worker_plugin_max_mb * MB, advice)


def _folder(path: Path, enough: int, advice: str) -> Iterator[Finding]:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        yield Finding(f"{path} cannot be written: {advice}")
        return
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        yield Finding(f"{path} has {free // MB} MB left: free some space, or {advice}")
    elif free < enough:
        needs = f"a release may have {enough // MB} MB (WORKER_PLUGIN_MAX_MB)"
        yield Finding(f"{path} has {free // MB} MB left, and {needs}: free some space, or {advice}", False)


def free_space() -> str:
    """How much the temporary directory has left."""
    return f"{shutil.disk_usage(tempfile.gettempdir()).free // MB:,} MB are free in {tempfile.gettempdir()}"


def check_proxies(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """The environment's proxies, which the worker does not use and others do."""
    names = ", ".join(_proxies(environ))
    if not names:
        return
    direct = _direct_names(environ)
    missing = [name for name in LOOPBACK_NAMES if not _is_direct(name, direct)]
    if missing:
        yield Finding(
            f"{names} is set and NO_PROXY lacks {' and '.join(missing)}: what plugin code, Ray or a probe"
            f" sends to this host goes through the proxy; add {','.join(missing)} (the worker uses no proxy)",
            False,
        )
    host = (settings.ray_address or "").removeprefix("ray://").rpartition(":")[0]
    of_ray = dict(environ)
    drop_proxies(of_ray)
    if _proxies(of_ray) and host and not _is_direct(host, direct):
        yield Finding(
            f"{RAY_USES_PROXY} leads to Ray through {names}: unset it, or add {host} to NO_PROXY", False
        )


def _proxies(environ: Mapping[str, str]) -> list[str]:
    return sorted({name.upper() for name, value in environ.items() if name.lower() in PROXIES and value})


def _direct_names(environ: Mapping[str, str]) -> list[str]:
    text = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    return [name.strip().lower() for name in text.split(",") if name.strip()]


def _is_direct(host: str, direct: list[str]) -> bool:
    """Whether NO_PROXY names the host, as a name, a domain, an address or `*`."""
    return any(
        name == "*" or host == name.lstrip(".") or host.endswith(f".{name.lstrip('.')}") for name in direct
    )


def check_port(settings: Settings) -> Iterator[Finding]:
    """WORKER_HTTP_PORT: free, or held by a worker."""
    port, host = settings.worker_http_port, settings.worker_http_host
    if port is None:
        return
    try:
        target = "127.0.0.1" if ip_address(host).is_unspecified else host
    except ValueError:
        target = host
    try:
        with socket.create_connection((target, port), PORT_TIMEOUT_SECONDS):
            pass
    except socket.gaierror:
        yield Finding(f"WORKER_HTTP_HOST {host} is unknown: name an address of this host")
        return
    except OSError:
        return  # nobody has it
    try:
        url = f"http://[{target}]:{port}" if ":" in target else f"http://{target}:{port}"
        answer = httpx.get(f"{url}/live", timeout=PORT_TIMEOUT_SECONDS, trust_env=False)
        is_ours = answer.status_code in (200, 503) and answer.headers.get("content-type", "").startswith(
            "text/"
        )
    except httpx.HTTPError:
        is_ours = False
    if not is_ours:
        yield Finding(f"WORKER_HTTP_PORT {port} is in use by another program: set another one", False)


def check_tokens(settings: Settings) -> Iterator[Finding]:
    """What the settings say of the tokens."""
    own, lesser = settings.synapse_access_token, settings.worker_plugin_access_token
    if lesser is not None and lesser == own:
        yield Finding(
            "WORKER_PLUGIN_ACCESS_TOKEN is the worker's own token, so that plugin code has all of its rights:"
            " create one of lesser rights",
            False,
        )
    for name, url in (
        ("SYNAPSE_HOST", settings.synapse_host),
        ("SYNAPSE_AGENT_URL", settings.synapse_agent_url),
    ):
        if (
            url is not None
            and urlsplit(url).scheme == "http"
            and not _is_private(urlsplit(url).hostname or "")
        ):
            yield Finding(f"{name} is http://, so that its token can be read on the way: use https://", False)


def _is_private(host: str) -> bool:
    """Whether a host looks like one of the own network: without a domain, or with a private address."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".svc", ".localhost"))
