"""Serving a model, without Ray: inference, tickets, model tokens and constructors."""

import asyncio
import base64
import hmac
import json
from typing import Any

import pytest
from pydantic import BaseModel

from worker.actions import BaseServeDeployment
from worker.actions.application_builder import _constructor_arguments, _is_builder
from worker.actions.models import ModelTokenError, model_key, open_model, read_model_token


class Slow(BaseServeDeployment):
    async def infer(self, body: Any) -> Any:
        await asyncio.sleep(body["seconds"])
        if body.get("fail"):
            raise ValueError("no such image")
        return {"done": body["seconds"]}


class Sync(BaseServeDeployment):
    def infer(self, body: Any) -> Any:  # type: ignore[override]
        return {"got": body}


class Body(BaseModel):
    seconds: float


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.serve.get_multiplexed_model_id", lambda: "")


async def test_a_quick_inference_is_answered() -> None:
    assert await Slow("http://b").handle_inference({"seconds": 0}) == {"done": 0}
    assert await Sync("http://b").handle_inference({"n": 1}) == {"got": {"n": 1}}
    with pytest.raises(ValueError, match="no such image"):
        await Slow("http://b").handle_inference({"seconds": 0, "fail": True})


async def test_a_request_object_is_read() -> None:
    class Request:
        async def json(self) -> Any:
            return {"seconds": 0}

    assert await Slow("http://b").handle_inference(Request()) == {"done": 0}


async def test_a_body_that_is_a_model_already_is_taken_as_it_is() -> None:
    class Echo(BaseServeDeployment):
        async def infer(self, body: Any) -> Any:
            return body

    body = Body(seconds=0)
    assert await Echo("http://b").handle_inference(body) is body
    assert await Echo("http://b").handle_inference(body, Body) is body


async def test_a_long_inference_is_collected_with_its_ticket() -> None:
    served = Slow("http://b")
    pending = await served.handle_inference({"seconds": 0.1}, deadline_s=0.01)
    assert (pending["__synapse_deferred__"], pending["status"]) == (True, "pending")
    poll = {"__synapse_poll__": pending["ticket"]}
    assert await served.handle_inference(poll) == pending
    await asyncio.sleep(0.15)
    assert await served.handle_inference(poll) == {"done": 0.1}
    assert (await served.handle_inference(poll))["status"] == "not_found"


async def test_a_long_inference_that_fails_says_so() -> None:
    served = Slow("http://b")
    pending = await served.handle_inference({"seconds": 0.02, "fail": True}, deadline_s=0.001)
    await asyncio.sleep(0.05)
    answer = await served.handle_inference({"__synapse_poll__": pending["ticket"]})
    assert (answer["status"], answer["error"]) == ("failed", "ValueError: no such image")


async def test_a_ticket_of_a_failed_inference_says_no_address_and_no_token() -> None:
    class Remote(BaseServeDeployment):
        async def infer(self, body: Any) -> Any:
            await asyncio.sleep(0.01)
            raise OSError("403 for 'https://store/m.zip?X-Amz-Signature=private' with token=private")

    served = Remote("http://b")
    pending = await served.handle_inference({}, deadline_s=0.001)
    await asyncio.sleep(0.05)
    answer = await served.handle_inference({"__synapse_poll__": pending["ticket"]})
    assert answer["error"] == "OSError: 403 for '<url>' with token=***"


async def test_a_body_model_and_a_runner_of_the_authors() -> None:
    async def runner(body: Body) -> float:
        return body.seconds

    assert await Slow("http://b").handle_inference({"seconds": 2}, Body, runner) == 2


async def test_a_timeout_of_the_authors_own_is_theirs() -> None:
    class Hasty(BaseServeDeployment):
        async def infer(self, body: Any) -> Any:
            raise TimeoutError("upstream")

    with pytest.raises(TimeoutError, match="upstream"):
        await Hasty("http://b").handle_inference({})


async def test_a_batch_is_its_parts_by_default() -> None:
    assert await Slow("http://b").infer_batch([{"seconds": 0}] * 2) == [{"done": 0}] * 2


async def test_without_a_named_model_one_is_loaded_once() -> None:
    class Loading(BaseServeDeployment):
        loads = 0

        async def _get_model(self, model_info: dict[str, Any]) -> Any:
            self.loads += 1
            return model_info

    served = Loading("http://b")
    assert await asyncio.gather(served.get_model(), served.get_model()) == [{}, {}]
    assert served.loads == 1


async def test_what_must_be_overridden_says_so() -> None:
    with pytest.raises(NotImplementedError, match="override infer"):
        await BaseServeDeployment("http://b").infer({})
    with pytest.raises(NotImplementedError, match="override _get_model"):
        await BaseServeDeployment("http://b").get_model()


def signed(claims: dict[str, Any], key: str, alg: str = "HS256") -> str:
    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = f"{encoded(json.dumps({'alg': alg}).encode())}.{encoded(json.dumps(claims).encode())}"
    return f"{head}.{encoded(hmac.digest(key.encode(), head.encode(), 'sha256'))}"


def test_a_model_token_is_checked_and_never_a_name() -> None:
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


async def test_a_plain_model_id_is_a_record_without_a_folder() -> None:
    async with open_model("7", "http://b") as model_info:
        assert model_info == {"id": 7}


class Nothing:
    pass


class Url:
    def __init__(self, threshold: float = 0.5, backend_url: str = "") -> None: ...


class Needs:
    def __init__(self, where: str) -> None: ...


class Optional:
    def __init__(self, threshold: float = 0.5) -> None: ...


class TooMany:
    def __init__(self, one: int, two: int) -> None: ...


def test_a_constructor_gets_the_backend_when_it_asks_for_it() -> None:
    assert _constructor_arguments(Nothing, "u") == {}
    assert _constructor_arguments(Optional, "u") == {}
    assert _constructor_arguments(Url, "u") == {"backend_url": "u"}
    assert _constructor_arguments(Needs, "u") == {"where": "u"}
    assert _constructor_arguments(Slow, "u") == {"backend_url": "u"}
    with pytest.raises(TypeError, match="needs one, two"):
        _constructor_arguments(TooMany, "u")


def test_a_function_that_takes_nothing_builds() -> None:
    def builds() -> None: ...

    def answers(request: object) -> None: ...

    assert _is_builder(builds)
    assert not _is_builder(answers)
