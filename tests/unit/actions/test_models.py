"""Fetching the model that a token names: who is shown the user's token, and what errors say."""

import io
import traceback
import zipfile
from typing import Any

import pytest
from tests.unit.actions.test_serve_deployment import signed

from tests.unit.platform.conftest import Service, service
from worker.actions.models import ModelFileError, open_model
from worker.platform import AuthenticationError, HTTPError

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


async def test_a_model_is_fetched_with_the_users_token_and_its_file_without(service: Service) -> None:
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


async def test_a_backend_that_redirects_does_not_send_the_users_token_elsewhere(service: Service) -> None:
    service.answers(status=302, headers={"Location": elsewhere(service, "stolen")})

    with pytest.raises(HTTPError, match="redirects are not followed"):
        await fetched(service)

    assert [seen.path for seen in service.seen] == ["/models/7/"]


async def test_a_refused_token_is_told_as_such(service: Service) -> None:
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
async def test_an_error_of_the_file_does_not_say_its_signed_address(
    service: Service, file: str, said: str
) -> None:
    url = f"{file.format(service=elsewhere(service, 'model.zip'))}?{SIGNED}"
    service.answers({"id": 7, "file": url}).answers(status=403)

    with pytest.raises(ModelFileError, match=said) as caught:
        await fetched(service)

    told = "".join(traceback.format_exception(caught.value))
    assert "private-" not in told
    assert "127.0.0.1" not in told
    assert caught.value.__context__ is None


async def test_a_model_without_a_file_says_so(service: Service) -> None:
    service.answers({"id": 7, "file": None})

    with pytest.raises(ModelFileError, match="model 7 has no file"):
        await fetched(service)
