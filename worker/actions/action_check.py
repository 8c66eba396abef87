"""Which way an action of a release will go, or why it cannot work, from its source alone."""

import ast
from dataclasses import dataclass

from worker.actions.overrides import (
    GETTERS,
    SDK_MODULES,
    ActionKind,
    UncalledMethodError,
    check_whole_run,
    uncalled_methods,
)
from worker.plugins import Release
from worker.plugins.requests import Runner
from worker.plugins.source import ClassSource, ReleaseSource, SourceError, bound_names

TO_TASK, DEPLOYMENT, SERVED = "ToTaskAction", "BaseDeploymentAction", "BaseServeDeployment"
MAX_ACTION_PARAMETERS = 2


@dataclass(frozen=True)
class Verdict:
    """What becomes of an action: the way that it goes, or a problem."""

    action: str
    way: str = ""
    problem: str = ""


def check_action(release: Release, name: str) -> Verdict:
    """Read an action's entrypoint.

    Args:
        release: The release.
        name: A key of its `actions`.

    Returns:
        The way, or the problem with the action's name in it.
    """
    entrypoint = release.config.actions[name].entrypoint.replace(":", ".")
    module, _, attribute = entrypoint.rpartition(".")
    source = ReleaseSource(release.path)
    try:
        tree = source.tree(module)
        if tree is None:
            return Verdict(name, problem=f"action {name!r}: there is no module {module!r}")
        source.check_syntax(module)
        names = set(bound_names(tree))
        if attribute not in names and "*" not in names:
            return Verdict(name, problem=f"action {name!r}: module {module!r} has no {attribute!r}")
        found = source.definition(module, attribute)
        way = _way(name, entrypoint, found, source)
    except SourceError as error:
        return Verdict(name, problem=str(error))
    except (TypeError, UncalledMethodError) as error:
        return Verdict(name, problem=f"action {name!r}: {error}")
    return Verdict(name, way=way)


def _way(name: str, entrypoint: str, found: object, source: ReleaseSource) -> str:
    """Raises `TypeError` for what cannot work."""
    cls = found if isinstance(found, ClassSource) else None
    if name == ActionKind.TO_TASK:
        return _to_task_way(entrypoint, cls, found)
    if name == ActionKind.DEPLOYMENT:
        return _deployment_way(entrypoint, cls, source)
    if name == "inference":
        return "names the resources and options of a dispatch; what is deployed is the action 'deployment'"
    if cls is not None and cls.descends_from(TO_TASK):
        return _to_task_way(entrypoint, cls, found)
    if cls is not None and cls.descends_from(DEPLOYMENT):
        return _deployment_way(entrypoint, cls, source)
    if cls is not None and any(_is_sdk_action(base) for base in cls.outside):
        return f"runs whole, as a Ray job{_origin(cls)}"
    return "is no deployment and no to_task, so nothing runs it here"


def _is_sdk_action(base: str) -> bool:
    return base.startswith(SDK_MODULES) and base.endswith("Action")


def _to_task_way(entrypoint: str, cls: ClassSource | None, found: object) -> str:
    if cls is None:
        if found is None:
            return f"annotates by {entrypoint}, which its source does not show"
        raise TypeError(f"{entrypoint} is no class, and annotating needs a {TO_TASK}")
    if not cls.descends_from(TO_TASK):
        if not cls.is_known:
            return f"annotates by {entrypoint}, whose bases its source does not show"
        raise TypeError(f"{entrypoint} is no {TO_TASK}, so it cannot annotate")
    _check_action_constructor(cls)
    if way := _whole_way(ActionKind.TO_TASK, cls):
        return way
    methods = []
    if "convert_data_from_file" in cls.methods:
        methods.append("by file")
    if {"convert_data_from_inference", "setup_inference_params"} & cls.methods.keys():
        methods.append("by inference")
    return f"annotates by its hooks, {' and '.join(methods) or 'of which it overrides none'}{_origin(cls)}"


def _deployment_way(entrypoint: str, cls: ClassSource | None, source: ReleaseSource) -> str:
    if cls is None:
        return f"deploys {entrypoint} on Ray Serve"
    if cls.descends_from(TO_TASK):
        raise TypeError(f"{entrypoint} is a {TO_TASK}, which cannot be deployed")
    if not cls.descends_from(DEPLOYMENT):
        if not cls.descends_from(SERVED) and any(base.startswith(SDK_MODULES) for base in cls.outside):
            raise TypeError(
                f"{entrypoint} is neither a {DEPLOYMENT} nor a {SERVED}, so it cannot be deployed"
            )
        _check_constructor(cls)
        return f"deploys {cls.name} on Ray Serve{_origin(cls)}"
    _check_action_constructor(cls)
    if way := _whole_way(ActionKind.DEPLOYMENT, cls):
        return way
    if _origin(cls) and "execute" not in cls.methods:
        raise TypeError(
            f"{cls.name} has no execute(), without which the published SDK makes no object of it: "
            "let it call ray_init(), deploy() and register_serve_application()"
        )
    getters = [each for each in GETTERS if each in cls.methods]
    own = f", with its own {', '.join(getters)}" if getters else ""
    return f"deploys {_target(cls, source)} on Ray Serve by the worker's steps{own}{_origin(cls)}"


def _target(cls: ClassSource, source: ReleaseSource) -> str:
    if "entrypoint" in cls.methods:
        return "what its property entrypoint says"
    if "entrypoint" not in cls.attributes:
        if not cls.is_known:
            return "its entrypoint"
        raise TypeError(f"{cls.name} sets no entrypoint: name the class to deploy")
    value = cls.attributes["entrypoint"]
    if not isinstance(value, ast.Name):
        return "its entrypoint"
    served = source.definition(cls.module, value.id)
    if isinstance(served, ClassSource):
        if served.descends_from(TO_TASK, DEPLOYMENT):
            raise TypeError(f"entrypoint of {cls.name} is {value.id}, an action, which Ray Serve cannot run")
        _check_constructor(served)
    return value.id


def _whole_way(kind: ActionKind, cls: ClassSource) -> str:
    """The way of an action that runs whole; empty for one that goes by the worker's steps."""
    found = uncalled_methods(kind, cls.methods)
    if not found:
        return ""
    check_whole_run(cls.name, kind, found, Runner.SDK if _origin(cls) else Runner.WORKER)
    own = ", ".join(f"{method}()" for method in found)
    return f"runs whole, as a Ray job, for its own {own}{_origin(cls)}"


def _check_action_constructor(cls: ClassSource) -> None:
    """An action is made with its parameters and its context."""
    if len(needed := _required_parameters(cls)) > MAX_ACTION_PARAMETERS:
        raise TypeError(f"{cls.name}.__init__ needs {', '.join(needed)}; an action is given params and ctx")


def _check_constructor(cls: ClassSource) -> None:
    """As `worker.actions.application_builder` calls it."""
    names = _required_parameters(cls)
    if len(names) > 1 or (_takes_backend_url(cls) and set(names) - {"backend_url"}):
        needed = ", ".join(names)
        raise TypeError(f"{cls.name}.__init__ needs {needed}; only the backend's URL can be given")


def _required_parameters(cls: ClassSource) -> list[str]:
    """Those of the author's own constructor that have no default."""
    constructor = cls.methods.get("__init__")
    if not isinstance(constructor, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    arguments = constructor.args
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    names = [each.arg for each in positional[: len(positional) - len(arguments.defaults)]]
    with_defaults = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return names + [each.arg for each, default in with_defaults if default is None]


def _takes_backend_url(cls: ClassSource) -> bool:
    constructor = cls.methods.get("__init__")
    if not isinstance(constructor, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    arguments = constructor.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return "backend_url" in {each.arg for each in every}


def _origin(cls: ClassSource) -> str:
    return " (published SDK)" if any(base.startswith(SDK_MODULES) for base in cls.outside) else ""
