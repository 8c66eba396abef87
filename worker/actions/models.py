"""The model that a request names by a plain id or by the platform's signed token, downloaded and unpacked."""

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

from shared.messages import JsonObject
from worker.platform import clean

CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS = 10.0, 60.0
"""To connect, and without data from the backend or the file's store while a model is downloaded."""


class ModelTokenError(ValueError):
    """The request's model token was not signed by this backend."""


class ModelFileError(RuntimeError):
    """The model's file cannot be downloaded. The text never shows its address, which is signed."""


def model_key(identifier: str) -> str:
    """Name a model for logs: Serve logs the name, and a token contains its user's access token.

    Args:
        identifier: The request's model id or token.

    Returns:
        The id itself, or a hash of the token.
    """
    if identifier.count(".") != 2:
        return identifier
    return f"token-{hashlib.sha256(identifier.encode()).hexdigest()[:16]}"


@asynccontextmanager
async def open_model(identifier: str, backend_url: str) -> AsyncIterator[JsonObject]:
    """Download and unpack a model for the time of an `async with` block.

    Args:
        identifier: The request's model id or token.
        backend_url: Base URL of the platform's backend.

    Yields:
        The platform's record of the model, whose `path` is the unpacked folder; for a plain id only `id`.

    Raises:
        ModelTokenError: The token was not signed by this backend.
        ModelFileError: The model has no file, or it cannot be downloaded.
        ClientError: The backend does not answer or knows no such model.
    """
    if identifier.count(".") != 2:
        yield {"id": int(identifier) if identifier.isdecimal() else identifier}
        return
    claims = read_model_token(identifier, backend_url)
    folder = Path(tempfile.mkdtemp(prefix="synapse-model-"))
    try:
        yield {**await asyncio.to_thread(_fetch, claims, backend_url, folder), "path": folder}
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def create_serve_multiplexed_model_id(
    model_id: int | str, token: str, backend_url: str, tenant: str | None = None
) -> str:
    """Make the platform's model token, which a request names in the header `serve_multiplexed_model_id`.

    Args:
        model_id: The backend's id of the model.
        token: The access token with which the model is fetched.
        backend_url: Base URL of the platform's backend, which is the key of the signature.
        tenant: The tenant, if there is one.

    Returns:
        A JWT with HS256; `read_model_token` is the inverse.
    """
    claims = {"model": str(model_id), "token": token, **({"tenant": tenant} if tenant else {})}
    head = ".".join(
        _encode_base64(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    return f"{head}.{_encode_base64(hmac.digest(backend_url.encode(), head.encode(), 'sha256'))}"


def read_model_token(token: str, backend_url: str) -> JsonObject:
    """Verify the platform's model token: a JWT with HS256, whose key is the backend's URL.

    Args:
        token: The request's model token.
        backend_url: Base URL of the platform's backend, with or without a slash at its end.

    Returns:
        The claims, such as `model`, `token` and `tenant`.

    Raises:
        ModelTokenError: The token cannot be read, or was not signed by this backend.
    """
    head, _, signature = token.rpartition(".")
    try:
        header, claims = (json.loads(_decode_base64(part)) for part in head.split("."))
        given = _decode_base64(signature)
    except (ValueError, RecursionError):
        raise ModelTokenError("the model's token cannot be read") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise ModelTokenError("the model's token cannot be read")
    keys = [backend_url.rstrip("/") + end for end in ("", "/")]
    expected = [hmac.digest(key.encode(), head.encode(), "sha256") for key in keys]
    if header.get("alg") != "HS256" or not any(hmac.compare_digest(given, item) for item in expected):
        raise ModelTokenError("the model's token was not signed for this backend")
    return claims


def _decode_base64(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _encode_base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _fetch(claims: JsonObject, backend_url: str, folder: Path) -> JsonObject:
    from worker.platform import BackendClient

    timeout = {"connect": CONNECT_TIMEOUT_SECONDS, "read": READ_TIMEOUT_SECONDS}
    # The client follows no redirect, which would send the user's token to another host.
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
    """Download the file; its store may redirect, because no token is sent to it."""
    import httpx

    from worker.platform.deadlines import tls_context
    from worker.platform.transport import transport_error

    try:
        with (
            # trust_env: the address is signed, and neither a proxy nor `.netrc` has to do with it. The
            # certificates are those of all clients, which heed SSL_CERT_FILE.
            httpx.stream(
                "GET",
                url,
                timeout=READ_TIMEOUT_SECONDS,
                follow_redirects=True,
                trust_env=False,
                verify=tls_context(),
            ) as answer,
            archive.open("wb") as sink,
        ):
            if answer.is_success:
                for chunk in answer.iter_bytes():
                    sink.write(chunk)
                return
            reason = f"{answer.status_code} {answer.reason_phrase}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(transport_error(error))
    # Raised outside of the except block, because an error of httpx holds the address.
    raise ModelFileError(clean(f"the model's file cannot be fetched: {reason}"))


def _unpack(archive: Path, folder: Path) -> None:
    """A zip or a tar is unpacked and removed; any other file stays under the name `model.download`."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)  # noqa: S202 - zipfile keeps all paths inside the folder
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened_tar:
            opened_tar.extractall(folder, filter="data")
    else:
        return
    archive.unlink()
