"""Downloading the model that a token names: where the user's token is sent, and what errors say."""

import base64
import hmac
import io
import json
import ssl
import threading
import traceback
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.unit.platform.conftest import Service, service
from worker.actions.models import (
    ModelFileError,
    ModelTokenError,
    create_serve_multiplexed_model_id,
    model_key,
    open_model,
    read_model_token,
)
from worker.platform import AuthenticationError, HTTPError
from worker.platform.deadlines import tls_context

__all__ = ["service"]  # a fixture


SIGNED = "X-Amz-Signature=private-signature"


CLAIMS = {"model": 7, "token": "private-user-token", "tenant": "acme"}


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        opened.writestr("weights.txt", "1 2 3")
    return content.getvalue()


def elsewhere(service: Service, path: str) -> str:
    """The same server under another name, which is another origin."""
    return f"{service.url.replace('127.0.0.1', 'localhost')}/{path}"


async def fetched(service: Service) -> dict[str, Any]:
    async with open_model(signed(CLAIMS, service.url), service.url) as model_info:
        return {**model_info, "weights": (model_info["path"] / "weights.txt").read_text()}


async def test_only_the_model_record_needs_the_users_token(service: Service) -> None:
    service.answers({"id": 7, "file": elsewhere(service, f"model.zip?{SIGNED}")})
    service.answers(status=302, headers={"Location": "/moved.zip"}).answers(body=archive())

    model_info = await fetched(service)

    assert (model_info["id"], model_info["weights"]) == (7, "1 2 3")
    assert not model_info["path"].exists()
    assert [seen.path for seen in service.seen] == ["/models/7/", f"/model.zip?{SIGNED}", "/moved.zip"]
    asked, *files = [seen.headers for seen in service.seen]
    assert asked["synapse-access-token"] == "Token private-user-token"
    assert asked["synapse-tenant"] == "Token acme"
    assert not any(name.startswith("synapse-") for headers in files for name in headers)


async def test_users_token_does_not_follow_a_redirect(service: Service) -> None:
    service.answers(status=302, headers={"Location": elsewhere(service, "stolen")})

    with pytest.raises(HTTPError, match="redirects are not followed"):
        await fetched(service)

    assert [seen.path for seen in service.seen] == ["/models/7/"]


async def test_rejected_token_is_an_authentication_error(service: Service) -> None:
    service.answers({"detail": "no"}, status=401)

    with pytest.raises(AuthenticationError, match="401 Unauthorized: no"):
        await fetched(service)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("{service}", "the model's file cannot be fetched: 403 Forbidden"),
        ("http://127.0.0.1:9/model.zip", "nobody listens at the service's address"),
        ("ftp://store/model.zip", "the request cannot be sent"),
        ("http://store:port/model.zip", "the request cannot be sent"),
    ],
)
async def test_error_of_the_file_hides_its_signed_address(service: Service, file: str, said: str) -> None:
    url = f"{file.format(service=elsewhere(service, 'model.zip'))}?{SIGNED}"
    service.answers({"id": 7, "file": url}).answers(status=403)

    with pytest.raises(ModelFileError, match=said) as caught:
        await fetched(service)

    messages = "".join(traceback.format_exception(caught.value))
    assert "private-" not in messages
    assert "127.0.0.1" not in messages
    assert caught.value.__context__ is None


async def test_model_without_a_file_is_an_error(service: Service) -> None:
    service.answers({"id": 7, "file": None})

    with pytest.raises(ModelFileError, match="model 7 has no file"):
        await fetched(service)


def signed(claims: dict[str, Any], key: str, alg: str = "HS256") -> str:
    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = f"{encoded(json.dumps({'alg': alg}).encode())}.{encoded(json.dumps(claims).encode())}"
    return f"{head}.{encoded(hmac.digest(key.encode(), head.encode(), 'sha256'))}"


def test_model_token_is_verified_and_never_a_name() -> None:
    claims = {"model": "7", "token": "hush"}
    token = signed(claims, "http://b")
    assert read_model_token(token, "http://b/") == claims
    assert read_model_token(signed(claims, "http://b/"), "http://b") == claims
    for wrong in (signed(claims, "http://evil"), signed(claims, "http://b", "none"), "a.b.c", f"{token}x"):
        with pytest.raises(ModelTokenError):
            read_model_token(wrong, "http://b")
    for header, body in (
        ("WzFd", "e30"),
        ("e30", "WzFd"),
        ("MQ", "MQ"),
        ("WyJ4Il0", "bnVsbA"),
    ):  # lists, numbers
        with pytest.raises(ModelTokenError, match="cannot be read"):
            read_model_token(f"{header}.{body}.eHg", "http://b")
    assert model_key("7") == "7"
    assert token not in model_key(token)


def test_a_token_that_is_made_here_is_the_platforms() -> None:
    token = create_serve_multiplexed_model_id(7, "hush", "http://b", "acme")

    assert read_model_token(token, "http://b") == {"model": "7", "token": "hush", "tenant": "acme"}


async def test_plain_model_id_gives_a_record_without_a_folder() -> None:
    async with open_model("7", "http://b") as model_info:
        assert model_info == {"id": 7}


class Store(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(archive())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def private_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a store whose certificate is of an authority that only SSL_CERT_FILE names."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls_context.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
    tls_context.cache_clear()


async def test_a_file_behind_a_private_certificate_is_fetched(service: Service, private_store: str) -> None:
    service.answers({"id": 7, "file": f"{private_store}/model.zip"})

    assert (await fetched(service))["weights"] == "1 2 3"
