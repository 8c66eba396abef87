"""The pages of the reference, made from the code when the site is built (`hooks` of mkdocs.yml).

    make docs

A page is Markdown: the settings, the messages, the tasks, the metrics and the commands. Where the code has no
word for one of them, `tests/unit/tools/test_reference.py` fails.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tools.tree import ROOT

Row: TypeAlias = tuple[str, ...]
Rows: TypeAlias = Callable[[], Sequence[Row]]

API: Final = {
    "shared": ("shared.publisher", "shared.follower", "shared.channels", "shared.statuses"),
    "worker.actions": (
        "worker.actions.base",
        "worker.actions.context",
        "worker.actions.deployment",
        "worker.actions.serve",
        "worker.actions.to_task",
    ),
    "worker.platform": ("worker.platform.backend", "worker.platform.agent", "worker.platform.ray_client"),
    "worker.testing": ("worker.testing",),
}
"""By page of the API, the modules whose docstrings it shows."""


def pages() -> dict[str, str]:
    """Every page by its path below `docs/`."""
    made = {
        "reference/settings.md": settings_page(),
        "reference/messages.md": messages_page(),
        "reference/tasks.md": tasks_page(),
        "reference/metrics.md": metrics_page(),
        "reference/commands.md": commands_page(),
    }
    for package, modules in API.items():
        made[f"reference/{package}.md"] = "\n\n".join([f"# {package}", *(f"::: {name}" for name in modules)])
    return made


def settings_page() -> str:
    """Every setting with its default and what it means."""
    rows = settings_rows()
    intro = "All from the environment; a mistake is rejected at start with one clear line."
    return f"# Settings\n\n{intro}\n\n{table(('variable', 'default', 'meaning'), rows)}\n"


def settings_rows() -> list[Row]:
    """Of each setting the name of the variable, the default and the description."""
    from worker.settings import Settings

    return [
        (f"`{name.upper()}`", _default_of(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def messages_page() -> str:
    """The four messages and their parameters, field by field."""
    parts = ["# Messages"]
    for model in message_models():
        task, queue = getattr(model, "task", None), getattr(model, "queue", None)
        parts += [f"## {model.__name__}", _summary(model)]
        if task:
            parts.append(f"Celery task `{task}`, queue `{queue}`.")
        parts.append(table(("field", "type", "default", "meaning"), message_rows(model)))
    return "\n\n".join(parts) + "\n"


def message_models() -> tuple[type[BaseModel], ...]:
    """The models of the messages and of their parameters."""
    from shared import messages

    return (
        messages.DeployMessage,
        messages.DeployParams,
        messages.ToTaskMessage,
        messages.ToTaskParams,
        messages.TailLogsMessage,
        messages.StopMessage,
    )


def all_message_rows() -> list[Row]:
    """The rows of all messages."""
    return [row for model in message_models() for row in message_rows(model)]


def message_rows(model: type[BaseModel]) -> list[Row]:
    """Of each field of a message its name there, type, default and description."""
    described = _attributes(model)
    return [
        (
            f"`{field.alias or name}`",
            _type_name(field.annotation),
            _default_of(field),
            described.get(name, ""),
        )
        for name, field in model.model_fields.items()
    ]


def tasks_page() -> str:
    """Every Celery task of the worker: those that others publish, and the steps."""
    rows = [(f"`{name}`", text) for name, text in tasks().items()]
    return f"# Celery tasks\n\nWhat Flower and `celery inspect` list.\n\n{table(('task', 'does'), rows)}\n"


def tasks() -> dict[str, str]:
    """The first paragraph of each task's docstring, by the task's name."""
    from celery import current_app

    for path in sorted((ROOT / "worker").rglob("*.py")):
        if "@shared_task" in path.read_text(encoding="utf-8"):
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    current_app.finalize()
    own = {name: task for name, task in current_app.tasks.items() if not name.startswith("celery.")}
    return {name: _first_paragraph(inspect.getdoc(own[name].run) or "") for name in sorted(own)}


def metrics_page() -> str:
    """Every metric by its full name, kind, labels and help."""
    header = ("metric", "kind", "labels", "meaning")
    return f"# Metrics\n\n{table(header, metrics_rows())}\n"


def metrics_rows() -> list[Row]:
    """Of each metric its name, kind, labels and help."""
    from fakeredis import FakeRedis

    from worker.metrics import DEFINITIONS, NAMESPACE
    from worker.monitoring.redis_metrics import Queues, RedisMetrics

    found = [
        (
            f"{NAMESPACE}_{each.name}",
            each.kind,
            each.labels,
            each.help,
        )
        for each in DEFINITIONS
    ]
    redis = FakeRedis(decode_responses=True)
    gauges = RedisMetrics(redis, Queues(redis, [])).collect()
    found += [(gauge.name, gauge.type, vars(gauge)["_labelnames"], gauge.documentation) for gauge in gauges]
    return [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), help_)
        for name, kind, labels, help_ in found
    ]


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` shows them."""
    parts = ["# Commands", "`synapse-worker COMMAND --help` shows the same."]
    for name, command in commands():
        parts += [f"## {name}", command.help or "", f"```\n{_usage(name, command)}\n```"]
        rows = [_parameter_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            parts.append(table(("argument or option", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def option_rows() -> list[Row]:
    """Of each argument and option of each command its name, default and help."""
    return [
        (f"{name} {row[0]}", *row[1:])
        for name, command in commands()
        for row in map(_parameter_row, command.params)
    ]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name, without groups."""
    from worker.cli.main import COMMANDS, load_command

    for name in COMMANDS:
        yield from _leaves(name, load_command(name))


def _leaves(name: str, command: Any) -> Iterator[tuple[str, click.Command]]:
    members = getattr(command, "commands", None)
    if members is None:
        yield name, command
        return
    for member, below in members.items():
        yield from _leaves(f"{name} {member}", below)


def _usage(name: str, command: Any) -> str:
    context = command.make_context(f"synapse-worker {name}", [], resilient_parsing=True)
    return " ".join([context.command_path, *command.collect_usage_pieces(context)])


def _parameter_row(parameter: Any) -> Row:
    names = [*parameter.opts, *parameter.secondary_opts]
    is_option = parameter.param_type_name == "option"
    shown = ", ".join(f"`{name}`" for name in names) if is_option else f"`{parameter.name.upper()}`"
    default = "required" if parameter.required else _shown_default(parameter.default)
    if parameter.envvar:
        default = f"`{parameter.envvar}`, else {default}" if default else f"`{parameter.envvar}`"
    return shown, default, parameter.help or ""


def _shown_default(default: Any) -> str:
    if default in (None, False, "", ()):
        return ""
    # The folder of this repository is another one on each machine.
    return f"`{str(default).removeprefix(f'{ROOT}/')}`"


def table(header: Row, rows: Iterable[Row]) -> str:
    """A table in Markdown, with the bars in its cells escaped."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "x-default" in extra:
        return str(extra["x-default"])  # what stands for a value that is not given
    default = field.get_default(call_default_factory=True)
    if default is None:
        return ""
    if isinstance(default, BaseModel | bool):
        return "`{}`" if isinstance(default, BaseModel) else f"`{json.dumps(default)}`"
    return f"`{default}`"


def _type_name(annotation: Any) -> str:
    """A type as a reader of JSON knows it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if inspect.isclass(annotation) and issubclass(annotation, StrEnum):
        return " or ".join(f"`{value}`" for value in annotation)
    names = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "object"}
    return names.get(origin or annotation, getattr(annotation, "__name__", "any"))


def _summary(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").split("\nAttributes:")[0].strip()


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a model and of its bases say of its fields."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        listed = (inspect.getdoc(base) or "").partition("\nAttributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the site; called by mkdocs."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files
