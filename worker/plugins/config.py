"""A release's config.yaml, parsed and checked (contract: "Plugins")."""

import re
from collections import Counter
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from shared.messages import JsonObject
from shared.validation import describe_validation_error
from worker.plugins.errors import ReleaseInvalidError

MAX_CONFIG_BYTES = 256 * 1024
MAX_NODES = 50_000
"""Nodes after aliases are expanded: a few lines of aliases of aliases can expand to billions."""

INSTALLERS = frozenset({"pip", "uv", "conda"})
"""Of a runtime environment: what installs packages; Ray takes one of them."""

_TEXT_TAG, _NULL_TAG, _MERGE_TAG = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
_ENTRYPOINT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*", re.ASCII)


def _text_only(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str):
        raise ValueError("must be text: write it in quotes")
    return value


def _check_runtime_env(value: object) -> object:
    """What Ray would reject, or would not take together with a release's package, when it is deployed."""
    declared = {str(name) for name, held in value.items() if held} if isinstance(value, dict) else set()
    if own := sorted(declared & {"working_dir", "py_modules"}):
        raise ValueError(f"must not set {' or '.join(own)}: the release itself is the working directory")
    if alone := sorted(declared & {"container", "image_uri"}):
        raise ValueError(
            f"must not set {' or '.join(alone)}, which Ray does not take with a working directory"
        )
    if len(installers := sorted(declared & INSTALLERS)) > 1:
        raise ValueError(f"must set one of {', '.join(installers)}, for Ray takes no two of them")
    for name in sorted(declared & {"pip", "uv"}):
        if isinstance(value, dict) and isinstance(value[name], str):
            raise ValueError(f"{name} must be a list or a mapping: for a file, requirements.txt is read")
    variables = value.get("env_vars") if isinstance(value, dict) else None
    if not isinstance(variables, dict | None):
        raise ValueError("env_vars must be a mapping")
    for name, text in (variables or {}).items():
        if not isinstance(text, str):
            raise ValueError(f"env_vars.{name} must be text: write it in quotes")
    return value


def _is_entrypoint(value: str) -> str:
    if not _ENTRYPOINT.fullmatch(value):
        raise ValueError("must look like package.module.Class or package.module:Class")
    return value


Text = Annotated[str, BeforeValidator(_text_only), StringConstraints(min_length=1)]
EnvValue = Annotated[str, BeforeValidator(_text_only)]
RuntimeEnv = Annotated[JsonObject, BeforeValidator(_check_runtime_env)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class ActionConfig(_Declared):
    """An action of a release: its entrypoint and the resources and options that it declares."""

    entrypoint: Annotated[str, BeforeValidator(_text_only), AfterValidator(_is_entrypoint)]
    method: str | None = None
    required_resources: JsonObject = Field(default_factory=dict)
    serve_options: JsonObject = Field(default_factory=dict)


class ReleaseConfig(_Declared):
    """The content of config.yaml. Unknown keys are ignored."""

    code: Text
    version: Text
    actions: dict[str, ActionConfig]
    name: str | None = None
    category: str | None = None
    description: str | None = None
    package_manager: Literal["pip", "uv"] = "pip"
    env: dict[str, EnvValue] = Field(default_factory=dict)
    runtime_env: RuntimeEnv = Field(default_factory=dict)
    wheels_dir: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The variables in the environment of the release's code; some may be secret."""
        return {**(self.runtime_env.get("env_vars") or {}), **self.env}


def parse_release_config(text: bytes) -> ReleaseConfig:
    """Parse config.yaml; raise `ReleaseInvalidError` with one line that names every mistake."""
    if len(text) > MAX_CONFIG_BYTES:
        raise ReleaseInvalidError(f"config.yaml is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        loader = yaml.SafeLoader(text.decode("utf-8-sig"))
        root = loader.get_single_node()
        _reject_alias_bomb(root)
        _reject_repeated_keys(root)
        for path in (("env",), ("runtime_env", "env_vars")):
            _keep_as_written(_node_at(root, path))
        content = None if root is None else loader.construct_document(root)
        if isinstance(content, dict):
            content = _without_nulls(content)
    except RecursionError:
        raise ReleaseInvalidError("config.yaml is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ReleaseInvalidError(f"config.yaml is not valid YAML: {_one_line(str(error))}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError):
        # PyYAML raises these for values such as `!!int ''` and `!!bool x`.
        raise ReleaseInvalidError("config.yaml is not valid YAML: a value does not fit its tag") from None
    if not isinstance(content, dict):
        raise ReleaseInvalidError("config.yaml must be a mapping with code, version and actions")
    try:
        return ReleaseConfig.model_validate(content)
    except ValidationError as error:
        mistakes = describe_validation_error(error, as_sentences=True)
        raise ReleaseInvalidError(f"config.yaml: {mistakes}") from None


def _node_at(root: yaml.Node | None, path: tuple[str, ...]) -> yaml.Node | None:
    node = root
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in reversed(pairs) if key.value == name), None)
    return node


def _keep_as_written(variables: yaml.Node | None) -> None:
    """Let the names and values of an environment be the text that was written.

    YAML makes false of NO, 83 of 0123 and 750 of 12:30, but an environment holds only text.
    """
    if not isinstance(variables, yaml.MappingNode):
        return
    for key, value in variables.value:
        if key.tag == _MERGE_TAG:
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _keep_as_written(merged)
            continue
        for node in (key, value):
            if isinstance(node, yaml.ScalarNode) and node.tag != _NULL_TAG:
                node.tag = _TEXT_TAG


def _without_nulls(content: dict[object, object]) -> dict[str, object]:
    """The content without the keys that were left empty, which count as absent."""
    kept = {str(key): value for key, value in content.items() if value is not None}
    actions = kept.get("actions")
    if isinstance(actions, dict):
        kept["actions"] = {
            str(name): {str(k): v for k, v in action.items() if v is not None}
            if isinstance(action, dict)
            else action
            for name, action in actions.items()
        }
    return kept


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _reject_alias_bomb(root: yaml.Node | None) -> None:
    """Reject a file with too many nodes; they are counted as if every alias were expanded, but none is."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in open_nodes:
            raise ReleaseInvalidError("config.yaml has an alias that contains itself")
        if key not in sizes:
            open_nodes.add(key)
            sizes[key] = 1 + sum(size(child) for child in _children(node))
            open_nodes.discard(key)
        return sizes[key]

    if root is not None and size(root) > MAX_NODES:
        raise ReleaseInvalidError(
            f"config.yaml has more than {MAX_NODES} values once its aliases are expanded"
        )


def _reject_repeated_keys(root: yaml.Node | None) -> None:
    """Reject a mapping that has a key twice: PyYAML takes the last one, and other readers the first."""
    open_nodes, seen = [root] if root is not None else [], set()
    while open_nodes:
        node = open_nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        open_nodes += _children(node)
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            repeated = [name for name, count in Counter(names).items() if count > 1 and name != "<<"]
            if repeated:
                line = node.start_mark.line + 1
                raise ReleaseInvalidError(
                    f"config.yaml has {repeated[0]!r} twice in the mapping of line {line}"
                )


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
