"""Builds the Serve application of an entrypoint, whatever form the entrypoint has."""

import copy
import importlib
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from shared.validation import describe_validation_error
from worker.actions.replica_needs import ReplicaNeeds, surge_percent
from worker.platform import clean
from worker.plugins.requests import ongoing_requests

INSTALLERS = frozenset({"pip", "uv", "conda", "image_uri", "container"})
"""Keys of a runtime environment of which Ray takes one."""


class ServeOptionsError(ValueError):
    """`serve_options` has an option that is unknown, of a wrong value, or does not fit the entrypoint."""


def build_application(
    target: Any,
    deployment_options: Mapping[str, Any],
    batch: Mapping[str, Any],
    url: str,
    arguments: Mapping[str, Any],
    defaults: Collection[str] = (),
) -> Any:
    """Bind an entrypoint.

    Args:
        target: An application, a deployment, a function that builds an application, a class, or a function
            that answers requests.
        deployment_options: Keyword arguments of `serve.deployment`.
        batch: Keyword arguments of `serve.batch` for `infer_batch` of the ingress's class; empty for none.
        url: The backend's URL, for a constructor that takes it.
        arguments: What a function that builds an application gets, if it takes an argument.
        defaults: Names of actor options that give way to those of a decorator.

    Returns:
        A `serve.Application`.

    Raises:
        TypeError: The target cannot be served, or its constructor needs other arguments than the URL.
        ServeOptionsError: Serve rejects an option, or the target cannot have it.
    """
    from pydantic import ValidationError

    try:
        if inspect.isfunction(target) and is_builder(target):
            target = _call_builder(target, arguments)
        return _bind(target, _Options(deployment_options, batch, defaults), url)
    except ValidationError as error:
        # Its own text has links to pages of pydantic, and the values.
        raise ServeOptionsError(f"serve_options: {describe_validation_error(error)}") from None


def merged_runtime_env(release: Mapping[str, Any], author: Mapping[str, Any]) -> dict[str, Any]:
    """Merge what the author's code adds to a release's runtime environment, of which it wins.

    Args:
        release: The release's own environment, with the package of its code.
        author: What the code adds. Its packages are installed in place of the release's own, because Ray
            takes one installer; the folder of the code stays the release's.

    Returns:
        The environment, with all variables of both.
    """
    chosen = {name: value for name, value in author.items() if name != "working_dir" or name not in release}
    replaced = INSTALLERS if INSTALLERS & chosen.keys() else frozenset()
    kept = {name: value for name, value in release.items() if name not in replaced}
    variables = {**(release.get("env_vars") or {}), **(author.get("env_vars") or {})}
    return {**kept, **chosen, "env_vars": variables}


@dataclass(frozen=True)
class _Options:
    of_deployment: Mapping[str, Any]
    batch: Mapping[str, Any]
    defaults: Collection[str]

    @property
    def ongoing_requests(self) -> dict[str, int]:
        """What a replica takes at once whose author has chosen batches, and not that."""
        if not self.batch:
            return {}
        return {"max_ongoing_requests": ongoing_requests(self.batch)}


def _bind(target: Any, options: _Options, url: str) -> Any:
    from ray import serve

    if isinstance(target, serve.Application):
        # Not the author's own object, which the next call in this process finds again.
        app = copy.copy(target)
        app._bound_deployment = _with_options(target._bound_deployment, options)
        return app
    if isinstance(target, serve.Deployment):
        return _with_options(target, options).bind(**_constructor_arguments(target.func_or_class, url))
    if inspect.isclass(target):
        arguments = _constructor_arguments(target, url)
        served = _with_ingress(_with_serve_methods(target, options.batch))
        given = {"name": target.__name__, **options.ongoing_requests, **options.of_deployment}
        return serve.deployment(served, **given).bind(**arguments)
    if callable(target):
        _reject_batch(target, options.batch)
        return serve.deployment(target, **options.of_deployment).bind()
    raise TypeError(
        f"cannot serve {type(target).__name__}: expected a class, function, deployment or application"
    )


def _call_builder(function: Any, arguments: Mapping[str, Any]) -> Any:
    """The application of a builder; one with a parameter gets the arguments as a dict or as its model."""
    from pydantic import BaseModel, ValidationError
    from ray import serve

    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    given: list[Any] = []
    if parameters:
        model = parameters[0].annotation
        given = [dict(arguments)]
        if inspect.isclass(model) and issubclass(model, BaseModel):
            try:
                given = [model.model_validate(dict(arguments))]
            except ValidationError as error:
                what = describe_validation_error(error)
                raise ServeOptionsError(f"the arguments of {function.__name__}: {what}") from None
    made = function(*given)
    if not isinstance(made, serve.Application | serve.Deployment):
        raise TypeError(
            "the entrypoint's function builds an application, so it must return a serve.Application"
        )
    return made


def allow_surge(app: Any) -> int:
    """Let replicas of an application start beside those that they replace, where there is room for both.

    Args:
        app: A `serve.Application`. A deployment whose author has chosen its surge keeps that.

    Returns:
        The percentage of the other deployments' replicas; 0 when no more fit.
    """
    bound = bound_deployments(app)
    chosen = [each for each in bound if _has_own_surge(each._bound_deployment)]
    ours = [each for each in bound if each not in chosen]
    surge = surge_percent([needs_of(each._bound_deployment) for each in ours])
    for each in ours:
        # As an option of Serve's own, for it must not look like one that the author has chosen.
        each._bound_deployment = each._bound_deployment.options(max_surge_percent=surge, _internal=True)
    return surge


def bound_deployments(app: Any) -> list[Any]:
    """List an application and those that are bound into it, each once.

    Args:
        app: A `serve.Application`.

    Returns:
        Applications, of which each has one deployment; the ingress is the first.
    """
    # There is no public way to look into an application; the exact version of Ray is pinned.
    from ray.dag.py_obj_scanner import _PyObjScanner

    found = [app]
    for each in found:  # which grows meanwhile
        scanner: Any = _PyObjScanner(source_type=type(app))
        try:
            deployment = each._bound_deployment
            inner = scanner.find_nodes((deployment.init_args, deployment.init_kwargs))
            found += [item for item in inner if all(item is not known for known in found)]
        finally:
            scanner.clear()
    return found


def needs_of(deployment: Any) -> ReplicaNeeds:
    """Read what a deployment's replicas need, when they start.

    Args:
        deployment: A `serve.Deployment`.

    Returns:
        The resources of its replicas, and their number.
    """
    config = deployment._deployment_config
    scaling = config.autoscaling_config
    count = (scaling.initial_replicas or scaling.min_replicas) if scaling else config.num_replicas
    options = dict(deployment.ray_actor_options or {})
    for bundle in deployment._replica_config.placement_group_bundles or []:
        # They hold what the replica's own options ask for as well.
        bundles = options.setdefault("bundles", {})
        for name, amount in bundle.items():
            bundles[name] = bundles.get(name, 0) + amount
    return ReplicaNeeds.of(options, int(count or 1))


def _has_own_surge(deployment: Any) -> bool:
    return "max_surge_percent" in deployment._deployment_config.user_configured_option_names


def is_builder(function: Any) -> bool:
    """Say whether a function builds an application, or answers requests.

    Args:
        function: The function.

    Returns:
        True for one that takes no argument, or is annotated to return an application.
    """
    signature = inspect.signature(function)
    required = [item for item in signature.parameters.values() if item.default is item.empty]
    returns = signature.return_annotation
    name = returns if isinstance(returns, str) else getattr(returns, "__name__", "")
    return not required or name.rpartition(".")[2] == "Application"


def _with_serve_methods(cls: Any, batch: Mapping[str, Any]) -> Any:
    """A subclass with batching and `__call__` where the class needs them; Ray pickles it by value."""
    _reject_batch(cls, batch)
    extra = _batching(cls, batch)
    if not _has_routes(cls) and "__call__" not in _members(cls) and hasattr(cls, "handle_inference"):
        extra["__call__"] = _call_handle_inference
    return _subclass(cls, extra)


def _batching(cls: Any, batch: Mapping[str, Any]) -> dict[str, object]:
    from ray import serve

    if not batch:
        return {}
    return batching_members(cls.infer_batch, serve.batch(**batch)) | {"batched": True}


def _subclass(cls: Any, extra: Mapping[str, object]) -> Any:
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


def _reject_batch(target: Any, batch: Mapping[str, Any]) -> None:
    if batch and not hasattr(target, "infer_batch"):
        raise ServeOptionsError(f"serve_options: batch needs infer_batch(), which {target.__name__} has not")


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


def _with_options(deployment: Any, options: _Options) -> Any:
    """The deployment with the run's options in place of its own, and with batching."""
    known = inspect.signature(deployment.options).parameters
    if unknown := sorted(set(options.of_deployment) - set(known)):
        raise ServeOptionsError(
            f"serve_options: {', '.join(unknown)} must stand in the decorator of {deployment.name}"
        )
    changes = {**options.of_deployment, "ray_actor_options": _merged_actor_options(deployment, options)}
    if options.batch:
        if "max_ongoing_requests" not in deployment._deployment_config.user_configured_option_names:
            changes = {**options.ongoing_requests, **changes}
        served = deployment.func_or_class
        _reject_batch(served, options.batch)
        changes["func_or_class"] = _subclass(served, _batching(served, options.batch))
    if changes.get("num_replicas", "auto") != "auto":
        changes["autoscaling_config"] = None  # that of the decorator would count more than the number
    return deployment.options(**changes)


def _merged_actor_options(deployment: Any, options: _Options) -> dict[str, Any]:
    own = dict(deployment.ray_actor_options or {})
    ours = dict(options.of_deployment.get("ray_actor_options") or {})
    given = ours.get("runtime_env") or {}
    environment = merged_runtime_env(given, own.get("runtime_env") or {})
    # A variable that the run or the release sets is that of all replicas.
    environment["env_vars"] = {**environment["env_vars"], **(given.get("env_vars") or {})}
    if "ray_actor_options" in deployment._deployment_config.user_configured_option_names:
        ours = {
            name: value for name, value in ours.items() if name not in options.defaults or name not in own
        }
    return {**own, **ours, "runtime_env": environment}
