"""How an entrypoint's constructor or function is called."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from ray import serve

from worker.actions import BaseServeDeployment
from worker.actions.application_builder import (
    _constructor_arguments,
    _is_builder,
    batching_members,
)


class Derived(BaseServeDeployment):
    pass


class Nothing:
    pass


class Url:
    def __init__(self, threshold: float = 0.5, backend_url: str = "") -> None: ...


class Needs:
    def __init__(self, where: str) -> None: ...


class Optional:
    def __init__(self, threshold: float = 0.5) -> None: ...


class More:
    def __init__(self, backend_url: str, threshold: float) -> None: ...


class TooMany:
    def __init__(self, one: int, two: int) -> None: ...


def test_constructor_gets_the_backend_url_it_takes() -> None:
    assert _constructor_arguments(Nothing, "u") == {}
    assert _constructor_arguments(Optional, "u") == {}
    assert _constructor_arguments(Url, "u") == {"backend_url": "u"}
    assert _constructor_arguments(Needs, "u") == {"where": "u"}
    assert _constructor_arguments(Derived, "u") == {"backend_url": "u"}
    with pytest.raises(TypeError, match="needs one, two"):
        _constructor_arguments(TooMany, "u")
    with pytest.raises(TypeError, match="needs backend_url, threshold; only the backend's URL can be given"):
        _constructor_arguments(More, "u")


def test_a_decorated_ingress_gets_the_backend_url() -> None:
    # Given the form that Ray's documentation has for FastAPI, around a class of ours and around another one
    ours = serve.deployment(serve.ingress(FastAPI())(Derived))
    other = serve.deployment(serve.ingress(FastAPI())(Needs))

    # Then its constructor is the author's, not Serve's own around it
    assert _constructor_arguments(ours.func_or_class, "u") == {"backend_url": "u"}
    assert _constructor_arguments(other.func_or_class, "u") == {"where": "u"}


def test_function_without_arguments_is_a_builder() -> None:
    def builds() -> None: ...

    def answers(request: object) -> None: ...

    assert _is_builder(builds)
    assert not _is_builder(answers)


def together(count: int) -> Callable[[Any], Any]:
    """A decorator as `serve.batch`: waits for `count` requests, and calls the method with all of them."""

    def decorate(function: Any) -> Any:
        waiting: list[tuple[Any, asyncio.Future[Any]]] = []

        async def call(self: Any, request: Any) -> Any:
            waiting.append((request, asyncio.get_running_loop().create_future()))
            future = waiting[-1][1]
            if len(waiting) == count:
                batch = waiting.copy()
                waiting.clear()
                results = await function(self, [given for given, _ in batch])
                for (_, each), result in zip(batch, results, strict=True):
                    each.set_result(result)
            return await future

        return call

    return decorate


class Shouts(BaseServeDeployment):
    calls: list[list[str]]

    async def infer_batch(self, requests: list[str]) -> list[str]:
        self.calls.append(requests)
        return [each.upper() for each in requests]


async def test_a_request_that_fails_does_not_fail_its_batch() -> None:
    # Given a class whose inference of a batch fails for one of its inputs
    members = batching_members(Shouts.infer_batch, together(3))
    served = type("Served", (Shouts,), members)("http://backend")
    served.calls = []

    # When three requests meet in a batch
    inputs: list[Any] = ["a", 7, "b"]
    answers = await asyncio.gather(*(served.infer_batch(each) for each in inputs), return_exceptions=True)

    # Then only that one gets the error, and a batch in which none fails is one call
    assert (answers[0], answers[2]) == ("A", "B")
    assert isinstance(answers[1], AttributeError)
    assert await asyncio.gather(*(served.infer_batch(each) for each in "xyz")) == ["X", "Y", "Z"]
    assert [len(call) for call in served.calls] == [3, 1, 1, 1, 3]


async def test_a_batch_without_a_result_for_each_input_says_so() -> None:
    async def infer_batch(_self: Any, _requests: list[str]) -> list[str]:
        return ["ONE", "TWO"]

    served = type("Served", (Shouts,), batching_members(infer_batch, together(1)))("http://backend")

    with pytest.raises(ValueError, match="one result for each of its 1 inputs"):
        await served.infer_batch("one")
