"""The model that a request names: a plain id, or the platform's signed token, fetched and unpacked."""

import asyncio
import base64
import hashlib
import hmac
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from worker.platform import BackendClient, clean
from worker.platform.transport import transport_error

CONNECT_SECONDS = 10.0
TIMEOUT_SECONDS = 60.0
"""Longest silence of the backend or of the file's store while a model is fetched."""


class ModelTokenError(ValueError):
    """The request's model token is not one that this backend signed."""


class ModelFileError(RuntimeError):
    """The model's file cannot be fetched. The text never says its address, which is signed."""


def model_key(identifier: str) -> str:
    """A name for the model that may be logged: a token carries its user's access token, Serve logs names."""
    if identifier.count(".") != 2:
        return identifier
    return f"token-{hashlib.sha256(identifier.encode()).hexdigest()[:16]}"


@asynccontextmanager
async def opened_model(identifier: str, backend_url: str) -> AsyncIterator[dict[str, Any]]:
    """The platform's record of the model; with a token, `path` is its unpacked folder while in here."""
    if identifier.count(".") != 2:
        yield {"id": int(identifier) if identifier.isdecimal() else identifier}
        return
    claims = read_token(identifier, backend_url)
    folder = Path(tempfile.mkdtemp(prefix="synapse-model-"))
    try:
        record = await asyncio.to_thread(_fetch, claims, backend_url, folder)
        yield {**record, "path": folder}
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def read_token(token: str, backend_url: str) -> dict[str, Any]:
    """The claims of the platform's token (a JWT, HS256, the key is the backend's URL)."""
    head, _, signature = token.rpartition(".")
    try:
        header, claims = (json.loads(_decoded(part)) for part in head.split("."))
        given = _decoded(signature)
    except (ValueError, RecursionError):
        raise ModelTokenError("the model's token cannot be read") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise ModelTokenError("the model's token cannot be read")
    bare = backend_url.rstrip("/")
    expected = [hmac.digest(key.encode(), head.encode(), "sha256") for key in (bare, f"{bare}/")]
    if header.get("alg") != "HS256" or not any(hmac.compare_digest(given, item) for item in expected):
        raise ModelTokenError("the model's token was not signed for this backend")
    return claims


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _fetch(claims: dict[str, Any], backend_url: str, folder: Path) -> dict[str, Any]:
    timeout = {"connect": CONNECT_SECONDS, "read": TIMEOUT_SECONDS}
    # The client follows no redirect, which would hand the user's token to whoever the answer names.
    with BackendClient(
        backend_url, str(claims["token"]), tenant=claims.get("tenant"), timeout=timeout
    ) as backend:
        record = backend.get_model(claims["model"])
    if not record.get("file"):
        raise ModelFileError(f"model {claims['model']} has no file")
    archive = folder / "model.download"
    _download(str(record["file"]), archive)
    _unpack(archive, folder)
    return record


def _download(url: str, archive: Path) -> None:
    """The file's store may redirect; no header of ours goes there."""
    try:
        with (
            httpx.stream("GET", url, timeout=TIMEOUT_SECONDS, follow_redirects=True) as answer,
            archive.open("wb") as sink,
        ):
            if answer.is_success:
                for chunk in answer.iter_bytes():
                    sink.write(chunk)
                return
            reason = f"{answer.status_code} {answer.reason_phrase}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(transport_error(error))
    # Outside of the except block: an error of httpx holds the address.
    raise ModelFileError(clean(f"the model's file cannot be fetched: {reason}"))


def _unpack(archive: Path, folder: Path) -> None:
    """A zip or a tar is unpacked and removed; any other file stays under the name `model.download`."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)  # noqa: S202 - zipfile drops what leads out of the folder
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened_tar:
            opened_tar.extractall(folder, filter="data")
    else:
        return
    archive.unlink()
