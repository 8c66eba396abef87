"""How an entrypoint's constructor or function is called."""

import pytest
from fastapi import FastAPI
from ray import serve

from worker.actions import BaseServeDeployment
from worker.actions.application_builder import (
    _constructor_arguments,
    _is_builder,
    allow_surge,
    bound_deployments,
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
