"""Which methods of an author the worker's own steps would not call, so that none is ignored in silence.

An action that has such methods runs whole, as a Ray job (`worker.whole_run`). The same rule reads a class
that is loaded and the source of one that is not (`worker.cli.plugin`).
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from shared.messages import JsonObject
from worker.plugins.requests import ENTRIES, WHOLE_RUN, Runner

SDK_MODULES: Final = "synapse_sdk."
OUR_MODULES: Final = (SDK_MODULES, "worker.actions.")
"""The modules of the base classes: what they define is no override."""

STEPS_OF_DEPLOYMENT = frozenset({"ray_init", "deploy", "register_serve_application"})
GETTERS: Final = (
    "get_serve_app_name",
    "get_route_prefix",
    "get_ray_actor_options",
    "get_serve_options",
    "get_runtime_env",
)
"""Of both base classes of a deployment: the author's is called where there is one."""
REPORTS = frozenset({"set_progress", "set_metrics", "log", "log_message", "log_metric", "log_visualization"})


class ActionKind(StrEnum):
    """What a release's action is for."""

    TO_TASK = "to_task"
    DEPLOYMENT = "deployment"
    OTHER = "other"
    """Of the published SDK, such as training: none of the worker's steps are for it."""


_WHOLE = frozenset({*ENTRIES, "setup_steps", "create_context"})
UNCALLED: Final[Mapping[ActionKind, frozenset[str]]] = {
    ActionKind.TO_TASK: _WHOLE,
    ActionKind.DEPLOYMENT: _WHOLE | STEPS_OF_DEPLOYMENT | {"_check_serve_capacity"},
    ActionKind.OTHER: _WHOLE,
}
"""The methods of the base classes that the worker's steps stand for."""

INSTEAD: Final[Mapping[ActionKind, str]] = {
    ActionKind.TO_TASK: "convert_data_from_file, convert_data_from_inference and setup_inference_params",
    ActionKind.DEPLOYMENT: "the get_ methods, entrypoint, and the class that is served",
    ActionKind.OTHER: "nothing of it",
}


class UncalledMethodError(TypeError):
    """The author overrides methods that nobody would call, not even in a whole run."""

    def __init__(self, name: str, kind: ActionKind, methods: list[str]) -> None:
        """Say what is wrong and what to do.

        Args:
            name: The name of the author's class.
            kind: What the action is for.
            methods: Those that nobody would call.
        """
        listed = ", ".join(f"{method}()" for method in methods)
        super().__init__(
            f"{name} overrides {listed}, which nobody calls: the worker's own steps call {INSTEAD[kind]},"
            " and an action that runs whole begins with execute()"
        )


def uncalled_methods(kind: ActionKind, methods: Mapping[str, ast.AST | None]) -> list[str]:
    """Name the methods for which the action has to run whole.

    Args:
        kind: What the action is for.
        methods: What the author's classes define, by name, each with its syntax tree or None.

    Returns:
        Those that the worker's steps do not call and that do something else than the steps themselves.
    """
    return [
        name for name, node in sorted(methods.items()) if name in UNCALLED[kind] and not _repeats(name, node)
    ]


def check_whole_run(name: str, kind: ActionKind, methods: list[str], runner: Runner) -> None:
    """Reject methods that a whole run would not call either.

    Args:
        name: The name of the author's class.
        kind: What the action is for.
        methods: The value of `uncalled_methods`.
        runner: Whose program would run it.

    Raises:
        UncalledMethodError: The base classes of this project know no such methods, and the author's own
            `execute` or `run`, which could call them, is not there.
    """
    known = {*ENTRIES, *STEPS_OF_DEPLOYMENT, "_check_serve_capacity"}
    unknown = [method for method in methods if method not in known]
    if runner is Runner.WORKER and unknown and not set(ENTRIES) & set(methods):
        raise UncalledMethodError(name, kind, unknown)


def whole_run_of(kind: ActionKind, cls: type[Any], payload: Any) -> JsonObject:
    """Decide whether a class runs whole, by the methods that it overrides.

    Args:
        kind: What the action is for.
        cls: The author's class.
        payload: That of the operation, in which the worker says that it can run actions whole.

    Returns:
        Nothing, or by the key `WHOLE_RUN` the names of the methods and whose program runs it.

    Raises:
        UncalledMethodError: It overrides methods that nobody would call, or the worker is an older one.
    """
    defined = {name: _syntax(found) for name, found in overrides(cls).items() if name in UNCALLED[kind]}
    methods = uncalled_methods(kind, defined)
    if not methods and kind is not ActionKind.OTHER:
        return {}
    runner = Runner.SDK if is_of_sdk(cls) else Runner.WORKER
    check_whole_run(cls.__name__, kind, methods, runner)
    if not isinstance(payload, Mapping) or not payload.get(WHOLE_RUN):
        raise UncalledMethodError(cls.__name__, kind, methods)
    return {WHOLE_RUN: {"methods": methods, "runner": runner}}


def is_of_sdk(cls: type[Any]) -> bool:
    """Say whether a class has a base of the published SDK.

    Args:
        cls: The author's class.

    Returns:
        Whether one of its bases is defined in a module of the SDK.
    """
    return any(f"{base.__module__}.".startswith(SDK_MODULES) for base in cls.__mro__)


def overrides(cls: type[Any]) -> dict[str, Any]:
    """Collect what an author's classes define over the base classes.

    Args:
        cls: The author's class.

    Returns:
        The attributes by name; of two classes, that of the more derived one.
    """
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base is not object and not f"{base.__module__}.".startswith(OUR_MODULES):
            found = {**vars(base), **found}
    return found


def _syntax(method: Any) -> ast.AST | None:
    function = getattr(method, "__func__", method)
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None


def _repeats(name: str, node: ast.AST | None) -> bool:
    """Whether a method only does what the worker's steps do, as the templates of the SDK write it."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    called: set[str] = set()
    if not all(_is_step(statement, called) for statement in node.body):
        return False
    steps = called - REPORTS
    if name not in ("execute", "run"):
        return steps <= {name} if name in ("ray_init", "setup_steps") else steps == {name}
    inherited = {"execute", "run"}
    return steps <= STEPS_OF_DEPLOYMENT | inherited and bool(steps & (inherited | {"deploy"}))


def _is_step(statement: ast.stmt, called: set[str]) -> bool:
    match statement:
        case ast.Pass() | ast.Return(value=None):
            return True
        case ast.Expr(value) | ast.Return(value) | ast.AnnAssign(value=value):
            return value is not None and _is_plain_or_call(value, called)
        case ast.Assign(targets=[ast.Name()], value=value):
            return _is_plain_or_call(value, called)
    return False


def _is_plain_or_call(value: ast.expr, called: set[str]) -> bool:
    """Whether it is a value that is written down, or a call of a method, whose name is added to `called`."""
    match value:
        case ast.Constant() | ast.Name():
            return True
        case ast.Dict(values=values):
            return all(_is_plain_or_call(each, called) for each in values)
        case (
            ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name))
            | ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name))
        ):
            called.add(name)
            return True
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr="logger"))):
            return True
    return False
