"""Builds the Serve application of an entrypoint, whatever form the entrypoint has."""

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from worker.platform import clean


def build_application(
    target: Any, deployment_options: Mapping[str, Any], batch: Mapping[str, Any], url: str
) -> Any:
    """Bind an entrypoint.

    Args:
        target: An application, a deployment, a function that builds an application, a class, or a function
            that answers requests.
        deployment_options: Keyword arguments of `serve.deployment`.
        batch: Keyword arguments of `serve.batch` for the class's `infer_batch`; empty for none.
        url: The backend's URL, for a constructor that takes it.

    Returns:
        A `serve.Application`.

    Raises:
        TypeError: The target cannot be served, or its constructor needs other arguments than the URL.
    """
    from ray import serve

    if inspect.isfunction(target) and _is_builder(target):
        target = target()
        if not isinstance(target, serve.Application | serve.Deployment):
            raise TypeError("the entrypoint's function takes nothing, so it must return a serve.Application")
    if isinstance(target, serve.Application):
        return _with_options(target, deployment_options)
    if isinstance(target, serve.Deployment):
        arguments = _constructor_arguments(target.func_or_class, url)
        return target.options(**_merged_options(target, deployment_options)).bind(**arguments)
    if inspect.isclass(target):
        arguments = _constructor_arguments(target, url)
        served = _with_ingress(_with_serve_methods(target, batch))
        return serve.deployment(served, name=target.__name__, **deployment_options).bind(**arguments)
    if callable(target):
        return serve.deployment(target, **deployment_options).bind()
    raise TypeError(
        f"cannot serve {type(target).__name__}: expected a class, function, deployment or application"
    )


def _is_builder(function: Any) -> bool:
    """Whether a function builds an application: it takes no argument, or is annotated to return one."""
    signature = inspect.signature(function)
    required = [item for item in signature.parameters.values() if item.default is item.empty]
    returns = signature.return_annotation
    name = returns if isinstance(returns, str) else getattr(returns, "__name__", "")
    return not required or name.rpartition(".")[2] == "Application"


def _with_serve_methods(cls: Any, batch: Mapping[str, Any]) -> Any:
    """A subclass with batching and `__call__` where the class needs them; Ray pickles it by value."""
    from ray import serve

    extra: dict[str, object] = {}
    if batch and hasattr(cls, "infer_batch"):
        extra |= batching_members(cls.infer_batch, serve.batch(**batch))
        extra["batched"] = True
    if not _has_routes(cls) and "__call__" not in _members(cls) and hasattr(cls, "handle_inference"):
        extra["__call__"] = _call_handle_inference
    if not extra:
        return cls
    name = f"{cls.__name__}Served"
    return type(name, (cls,), {**extra, "__module__": cls.__module__, "__qualname__": name})


def batching_members(infer_batch: Any, batch: Callable[[Any], Any]) -> dict[str, Any]:
    """The methods by which single requests meet in a batch, and one that fails does not fail the others.

    Serve answers all requests of a batch with the error that the author's code raises for one of them.

    Args:
        infer_batch: The class's own, from a list of inputs to a list of results.
        batch: The decorator of `serve.batch` with the declared options.

    Returns:
        `infer_batch`, which takes one input, and the method that Serve calls with those of several requests.
    """

    if not inspect.iscoroutinefunction(infer_batch):
        return {"infer_batch": batch(infer_batch)}  # a stream of results, or what Serve rejects

    async def infer_together(self: Any, requests: list[Any]) -> list[Any]:
        try:
            return [(result, None) for result in _each_of(await infer_batch(self, requests), len(requests))]
        except Exception as error:  # the author's code
            if len(requests) == 1:
                return [(None, error)]
        return [(await infer_together(self, [request]))[0] for request in requests]

    async def infer_single(self: Any, request: Any) -> Any:
        result, error = await self.infer_together(request)
        if error is not None:
            raise error
        return result

    return {"infer_together": batch(infer_together), "infer_batch": infer_single}


def _each_of(results: Any, count: int) -> list[Any]:
    if not hasattr(results, "__len__") or isinstance(results, str | bytes | dict) or len(results) != count:
        raise ValueError(f"infer_batch must return one result for each of its {count} inputs, in a list")
    return list(results)


async def _call_handle_inference(self: Any, request: Any) -> Any:
    """`__call__` of a class that has neither routes nor a `__call__` of its own.

    An error is answered with its reason, as that of a deferred inference is; Serve's own 500 says nothing.
    """
    from fastapi import HTTPException
    from starlette.responses import JSONResponse

    try:
        return await self.handle_inference(request)
    except HTTPException as error:
        return JSONResponse({"detail": error.detail}, error.status_code, dict(error.headers or {}))
    except Exception as error:  # the author's code
        logging.getLogger("ray.serve").exception("an inference failed")
        return JSONResponse({"detail": clean(f"{type(error).__name__}: {error}")}, 500)


def _members(cls: Any) -> set[str]:
    return {name for base in cls.__mro__ if base is not object for name in vars(base)}


def _has_routes(cls: Any) -> bool:
    return getattr(cls, "app", None) is not None


def _with_ingress(cls: Any) -> Any:
    """The class with its FastAPI `app` as ingress; where it has one already, `app` is a property."""
    app = getattr(cls, "app", None)
    if app is None or isinstance(app, property):
        return cls
    from ray import serve

    owner = next(base for base in cls.__mro__ if not base.__name__.endswith("Served"))
    module, qualified = owner.__module__, owner.__qualname__

    def build() -> Any:
        # It runs in the replica, where it patches the routes of the module that is imported there. It is a
        # nested function, so that Ray pickles it by value.
        found: Any = importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
        from ray import serve

        serve.ingress(found.app)(found)
        return found.app

    return serve.ingress(build)(cls)


def _constructor_arguments(callable_: Any, url: str) -> dict[str, str]:
    """The backend's URL, for a constructor that takes `backend_url` or requires exactly one argument."""
    if not inspect.isclass(callable_):
        return {}
    # `serve.ingress` puts a class with a constructor of its own around the author's, under the same name.
    constructors = (vars(base).get("__init__") for base in callable_.__mro__ if base is not object)
    found = (each for each in constructors if each and not str(each.__module__).startswith("ray.serve"))
    constructor = next(found, None)
    if constructor is None:
        return {}
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = [item for item in parameters if item.kind in kinds]
    named = [item for item in taken if item.name == "backend_url"]
    required = [item for item in taken if item.default is item.empty]
    needed = named or required
    if len({item.name for item in (*needed, *required)}) > 1:
        names = ", ".join(item.name for item in required)
        raise TypeError(f"{callable_.__name__}.__init__ needs {names}; only the backend's URL can be given")
    return {needed[0].name: url} if needed else {}


def _with_options(app: Any, options: Mapping[str, Any]) -> Any:
    """The bound application with `options` added to its ingress; its other deployments keep their own."""
    bound = app._bound_deployment  # there is no public attribute; the exact version of Ray is pinned
    app._bound_deployment = bound.options(**_merged_options(bound, options))
    return app


def _merged_options(deployment: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(deployment.ray_actor_options or {})
    ours = dict(options.get("ray_actor_options") or {})
    environment = {**(own.get("runtime_env") or {}), **(ours.get("runtime_env") or {})}
    variables = [(options_.get("runtime_env") or {}).get("env_vars") or {} for options_ in (own, ours)]
    environment["env_vars"] = {**variables[0], **variables[1]}
    return {**options, "ray_actor_options": {**own, **ours, "runtime_env": environment}}
