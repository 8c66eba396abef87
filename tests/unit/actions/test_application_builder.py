"""How an entrypoint's constructor or function is called, and which options its deployments get."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

from worker.actions import BaseServeDeployment
from worker.actions.application_builder import (
    ServeOptionsError,
    _constructor_arguments,
    allow_surge,
    batching_members,
    bound_deployments,
    build_application,
    is_builder,
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

    assert is_builder(builds)
    assert not is_builder(answers)


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


class Composed:
    def __init__(self, models: list[object], other: object) -> None: ...


def test_all_deployments_of_an_application_get_a_surge(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an application of three deployments, of which one stands at two places and one has a surge chosen
    shared = serve.deployment(Nothing, name="shared").bind()
    chosen = serve.deployment(Optional, name="chosen", max_surge_percent=20).bind()
    app = serve.deployment(Composed).bind([shared, chosen], shared)
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 8.0})

    # When it may surge, twice as in a process that deploys it again
    surges = [allow_surge(app) for _ in range(2)]

    # Then each has one, but for the author's choice
    found = {each._bound_deployment.name: each._bound_deployment for each in bound_deployments(app)}
    assert surges == [100, 100]
    assert {name: each._deployment_config.max_surge_percent for name, each in found.items()} == {
        "Composed": 100,
        "shared": 100,
        "chosen": 20,
    }


def build(
    target: Any, batch: dict[str, Any] | None = None, defaults: tuple[str, ...] = (), **options: Any
) -> Any:
    """The deployment of the ingress that is built of an entrypoint."""
    app = build_application(target, options, batch or {}, "http://b", {"size": "3"}, defaults)
    return app._bound_deployment


SCALED = {"min_replicas": 1, "max_replicas": 4}


@pytest.mark.parametrize("is_bound", [False, True])
def test_replicas_of_the_run_replace_a_decorators_autoscaling(is_bound: bool) -> None:
    decorated = serve.deployment(Nothing, autoscaling_config=SCALED)
    built = build(decorated.bind() if is_bound else decorated, num_replicas=2)
    assert (built.num_replicas, built._deployment_config.autoscaling_config) == (2, None)


def test_an_applications_options_are_those_of_one_run() -> None:
    # Given an application at the top of a module, which the process keeps
    app = serve.deployment(Nothing).bind()

    # When it is deployed with options, and then without
    built = [build(app, max_ongoing_requests=7), build(app)]

    # Then the second has none of the first
    assert [each.max_ongoing_requests for each in built] == [
        7,
        serve.deployment(Nothing).max_ongoing_requests,
    ]


def test_a_decorator_wins_over_what_nobody_has_chosen() -> None:
    decorated = serve.deployment(Nothing, ray_actor_options={"num_cpus": 2})
    asked = {"num_cpus": 1, "num_gpus": 0.1}
    given_way = build(decorated, defaults=("num_cpus", "num_gpus"), ray_actor_options=asked)
    assert given_way.ray_actor_options["num_cpus"] == 2
    assert given_way.ray_actor_options["num_gpus"] == 0.1
    assert build(decorated, ray_actor_options=asked).ray_actor_options["num_cpus"] == 1


@pytest.mark.parametrize("is_bound", [False, True])
def test_decorated_classes_can_batch(is_bound: bool) -> None:
    decorated = serve.deployment(Derived)
    built = build(decorated.bind("u") if is_bound else decorated, batch={"max_batch_size": 4})
    assert built.name == "Derived"
    assert built.func_or_class.batched
    assert built.func_or_class.infer_batch is not Derived.infer_batch
    assert not Derived.batched


def answers(request: object) -> None: ...


@pytest.mark.parametrize(
    "target", [Nothing, serve.deployment(Nothing), serve.deployment(Nothing).bind(), answers]
)
def test_batching_without_infer_batch_is_rejected_by_name(target: Any) -> None:
    with pytest.raises(
        ServeOptionsError, match=r"batch needs infer_batch\(\), which (Nothing|answers) has not"
    ):
        build(target, batch={"max_batch_size": 4})


@pytest.mark.parametrize("target", [Derived, serve.deployment(Derived), serve.deployment(Derived).bind("u")])
def test_a_replica_that_batches_takes_two_batches_at_once(target: Any) -> None:
    assert build(target, batch={"max_batch_size": 16}).max_ongoing_requests == 32
    assert build(target, batch={"max_batch_size": 2}).max_ongoing_requests == 5
    assert build(target, batch={"batch_wait_timeout_s": 0.1}).max_ongoing_requests == 20
    assert build(target).max_ongoing_requests == 5


def test_a_chosen_number_of_ongoing_requests_stays() -> None:
    decorated = serve.deployment(Derived, max_ongoing_requests=7)

    assert build(decorated, batch={"max_batch_size": 16}).max_ongoing_requests == 7
    assert build(Derived, batch={"max_batch_size": 16}, max_ongoing_requests=9).max_ongoing_requests == 9


def test_an_option_of_decorators_alone_is_rejected_by_name() -> None:
    with pytest.raises(
        ServeOptionsError, match="rolling_update_percentage must stand in the decorator of Nothing"
    ):
        build(serve.deployment(Nothing), rolling_update_percentage=0.5)
    assert build(Nothing, rolling_update_percentage=0.5, user_config={"a": 1}).user_config == {"a": 1}


def test_a_wrong_option_is_named_without_links() -> None:
    with pytest.raises(ServeOptionsError) as caught:
        build(Nothing, max_ongoing_requests="many")
    assert str(caught.value).startswith(
        "serve_options: max_ongoing_requests: Input should be a valid integer"
    )
    assert "pydantic" not in str(caught.value)


class Arguments(BaseModel):
    size: int


def with_model(arguments: Arguments) -> serve.Application:
    return serve.deployment(Optional).bind(arguments.size)


def with_dict(arguments: dict[str, str]) -> serve.Application:
    return serve.deployment(Optional).bind(arguments["size"])


def test_a_builder_gets_the_actions_parameters() -> None:
    assert build(with_model).init_args == (3,)
    assert build(with_dict).init_args == ("3",)


def test_a_decorators_packages_replace_those_of_the_release() -> None:
    decorated = serve.deployment(
        Nothing, ray_actor_options={"runtime_env": {"pip": ["mine"], "env_vars": {"A": "mine", "B": "mine"}}}
    )
    release = {"uv": ["theirs"], "working_dir": "gcs://p", "env_vars": {"A": "of the run"}}
    built = build(decorated, ray_actor_options={"runtime_env": release})
    environment = built.ray_actor_options["runtime_env"]
    assert environment == {
        "pip": ["mine"],
        "working_dir": "gcs://p",
        "env_vars": {"A": "of the run", "B": "mine"},
    }
