"""Serving a model without Ray: inference and tickets."""

import asyncio
import json
from math import nan
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from pydantic import BaseModel
from ray import serve

from worker.actions import BaseServeDeployment
from worker.actions.application_builder import _call_handle_inference


class Slow(BaseServeDeployment):
    """Ends an inference once the test allows it."""

    def __init__(self, backend_url: str) -> None:
        super().__init__(backend_url)
        self.may_end = asyncio.Event()

    async def infer(self, body: Any) -> Any:
        await self.may_end.wait()
        if "error" in body:
            raise body["error"]
        return {"done": body["n"]}


def quick() -> Slow:
    """One whose inferences end at once."""
    served = Slow("http://b")
    served.may_end.set()
    return served


class Sync(BaseServeDeployment):
    def infer(self, body: Any) -> Any:  # type: ignore[override]
        return {"got": body}


class Body(BaseModel):
    seconds: float


async def collect(served: BaseServeDeployment, ticket: str) -> Any:
    """Poll until the inference of `ticket` has ended, a minute at most."""
    async with asyncio.timeout(60):
        while True:
            answer = await served.handle_inference({"__synapse_poll__": ticket})
            if answer.get("status") != "pending":
                return answer
            await asyncio.sleep(0.01)


async def test_quick_inference_returns_its_result() -> None:
    assert await quick().handle_inference({"n": 0}) == {"done": 0}
    assert await Sync("http://b").handle_inference({"n": 1}) == {"got": {"n": 1}}
    with pytest.raises(ValueError, match="no such image"):
        await quick().handle_inference({"error": ValueError("no such image")})


async def test_body_of_a_request_object_is_read() -> None:
    class Request:
        async def json(self) -> Any:
            return {"n": 0}

    assert await quick().handle_inference(Request()) == {"done": 0}


async def test_body_that_is_a_model_is_used_unchanged() -> None:
    class Echo(BaseServeDeployment):
        async def infer(self, body: Any) -> Any:
            return body

    body = Body(seconds=0)
    assert await Echo("http://b").handle_inference(body) is body
    assert await Echo("http://b").handle_inference(body, Body) is body


async def test_long_inference_is_collected_with_its_ticket() -> None:
    served = Slow("http://b")
    pending = await served.handle_inference({"n": 1}, deadline_s=0.01)
    assert (pending["__synapse_deferred__"], pending["status"]) == (True, "pending")
    poll = {"__synapse_poll__": pending["ticket"]}
    assert await served.handle_inference(poll) == pending
    served.may_end.set()
    assert await collect(served, pending["ticket"]) == {"done": 1}
    assert (await served.handle_inference(poll))["status"] == "not_found"


async def test_long_inference_that_fails_is_a_failed_envelope() -> None:
    served = Slow("http://b")
    body = {"error": ValueError("no such image")}
    pending = await served.handle_inference(body, deadline_s=0.001)
    served.may_end.set()
    answer = await collect(served, pending["ticket"])
    assert (answer["status"], answer["error"]) == ("failed", "ValueError: no such image")


async def test_failed_envelope_has_no_address_and_no_token() -> None:
    served = Slow("http://b")
    error = OSError("403 for 'https://store/m.zip?X-Amz-Signature=private' with token=private")
    pending = await served.handle_inference({"error": error}, deadline_s=0.001)
    served.may_end.set()
    answer = await collect(served, pending["ticket"])
    assert answer["error"] == "OSError: 403 for '<url>' with token=***"


async def test_author_can_give_a_body_model_and_a_runner() -> None:
    async def runner(body: Body) -> float:
        return body.seconds

    assert await Slow("http://b").handle_inference({"seconds": 2}, Body, runner) == 2


async def test_timeout_error_of_the_author_is_raised() -> None:
    class Hasty(BaseServeDeployment):
        async def infer(self, body: Any) -> Any:
            raise TimeoutError("upstream")

    with pytest.raises(TimeoutError, match="upstream"):
        await Hasty("http://b").handle_inference({})


async def test_batch_calls_infer_for_each_input_by_default() -> None:
    assert await quick().infer_batch([{"n": 0}] * 2) == [{"done": 0}] * 2


async def test_default_model_is_loaded_once() -> None:
    class Loading(BaseServeDeployment):
        loads = 0

        async def _get_model(self, model_info: dict[str, Any]) -> Any:
            self.loads += 1
            return model_info

    served = Loading("http://b")
    assert await asyncio.gather(served.get_model(), served.get_model()) == [{}, {}]
    assert served.loads == 1


async def test_methods_to_override_name_themselves() -> None:
    with pytest.raises(NotImplementedError, match="override infer"):
        await BaseServeDeployment("http://b").infer({})
    with pytest.raises(NotImplementedError, match="override _get_model"):
        await BaseServeDeployment("http://b").get_model()


class Replicas:
    """Replicas of one deployment, as Serve's handle reaches them all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *replicas: BaseServeDeployment) -> None:
        self.replicas = replicas
        self.error: Exception | None = None
        context = SimpleNamespace(deployment="Slow", app_name="slow")
        monkeypatch.setattr(serve, "get_replica_context", lambda: context)
        monkeypatch.setattr(serve, "get_deployment_handle", lambda deployment, app_name: self)

    def broadcast(self, method: str, ticket: str) -> "Replicas":
        self.called = [getattr(replica, method)(ticket) for replica in self.replicas]
        return self

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> list[Any]:
        answers = [await call for call in self.called]
        return [self.error, *answers] if self.error is not None else answers


async def test_ticket_is_answered_by_any_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an inference in one of two replicas
    one, two = Slow("http://b"), Slow("http://b")
    Replicas(monkeypatch, one, two)
    pending = await one.handle_inference({"n": 1}, deadline_s=0.01)
    poll = {"__synapse_poll__": pending["ticket"]}

    # When polls meet the other one
    first = await two.handle_inference(poll)
    one.may_end.set()
    second = await collect(two, pending["ticket"])

    # Then they are answered all the same
    assert (first, second) == (pending, {"done": 1})


async def test_replica_that_fails_hides_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Slow("http://b"), Slow("http://b")
    Replicas(monkeypatch, one, two).error = OSError("the replica died")
    pending = await one.handle_inference({"n": 1}, deadline_s=0.001)
    one.may_end.set()

    assert await collect(two, pending["ticket"]) == {"done": 1}


async def test_result_lost_by_another_replica_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Slow("http://b"), Slow("http://b")
    Replicas(monkeypatch, one, two)
    pending = await one.handle_inference({"n": 1}, deadline_s=0.001)
    one.may_end.set()
    first = await collect(two, pending["ticket"])

    assert first == await two.handle_inference({"__synapse_poll__": pending["ticket"]}) == {"done": 1}


async def test_ticket_that_no_replica_knows_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Slow("http://b")
    Replicas(monkeypatch, one, Slow("http://b"))

    answer = await one.handle_inference({"__synapse_poll__": "elsewhere.42"})

    assert (answer["status"], answer["ticket"]) == ("not_found", "elsewhere.42")


class Scores(BaseServeDeployment):
    async def infer(self, body: Any) -> Any:
        if body.get("fails"):
            raise ValueError("no such image at http://host/private?token=secret-of-a-url")
        return {"boxes": [{"score": float(body["score"])}]}


@pytest.mark.parametrize("score", ["nan", "inf"])
async def test_result_that_is_no_json_is_an_error_with_its_place(score: str) -> None:
    with pytest.raises(HTTPException) as caught:
        await Scores("http://b").handle_inference({"score": score})

    assert caught.value.status_code == 500
    assert "boxes[0].score is " in caught.value.detail


async def test_deferred_result_that_is_no_json_is_an_error() -> None:
    served = Slow("http://b")
    pending = await served.handle_inference({"n": nan}, deadline_s=0)
    served.may_end.set()

    with pytest.raises(HTTPException, match="done is NaN"):
        await collect(served, pending["ticket"])


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"score": "nan"}, "the result of the inference is no JSON: boxes[0].score is NaN"),
        ({"fails": True}, "ValueError: no such image at <url>"),
    ],
)
async def test_error_of_an_inference_is_answered_with_its_reason(body: Any, detail: str) -> None:
    answer = await _call_handle_inference(Scores("http://b"), body)

    assert answer.status_code == 500
    assert json.loads(answer.body) == {"detail": detail}
    assert await _call_handle_inference(Scores("http://b"), {"score": 1}) == {"boxes": [{"score": 1.0}]}
