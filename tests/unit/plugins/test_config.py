"""config.yaml: what is accepted, and the one line that says what is wrong."""

import pytest

from worker.plugins import ReleaseInvalidError
from worker.plugins.config import MAX_CONFIG_BYTES, parse_release_config

GOOD = """
code: cat
version: "1.0"
actions:
  deployment:
    entrypoint: plugin.serve:Model
    serve_options: {num_replicas: 2}
    required_resources:
"""


def test_config_is_parsed() -> None:
    config = parse_release_config(
        GOOD.encode() + b"env: {SIZE: 3, FAST: true, NAME: x}\nsomething_else: [1]\nwheels_dir:\n"
    )
    assert config.actions["deployment"].entrypoint == "plugin.serve:Model"
    assert config.actions["deployment"].serve_options == {"num_replicas": 2}
    assert config.actions["deployment"].required_resources == {}
    assert config.package_manager == "pip"
    assert config.env == {"SIZE": "3", "FAST": "true", "NAME": "x"}


@pytest.mark.parametrize(
    ("runtime_env", "variables"),
    [("{env_vars: {KEY: 1, SIZE: 4}}", {"KEY": "1"}), ("{env_vars: }", {}), ("{pip: [x]}", {})],
)
def test_settings_include_env_vars_of_the_runtime_env(runtime_env: str, variables: dict[str, str]) -> None:
    config = parse_release_config(f"{GOOD}\nenv: {{SIZE: 3}}\nruntime_env: {runtime_env}".encode())
    assert config.settings == {**variables, "SIZE": "3"}


WRITTEN = {
    "REGION": "NO",
    "PIN": "0123",
    "AT": "12:30",
    "V": "1.10",
    "N": "1_000",
    "DAY": "2026-01-02",
    "HEX": "0x1F",
    "ON": "True",
    "E": "1e3",
    "OFF": ".inf",
    "FORCED": "!!int 7",
}


@pytest.mark.parametrize("place", ["env: {{{}}}", "runtime_env: {{env_vars: {{{}}}}}"])
def test_variables_are_the_text_that_was_written(place: str) -> None:
    written = ", ".join(f"{name}: {value}" for name, value in WRITTEN.items())
    config = parse_release_config(f"{GOOD}\n{place.format(written)}".encode())

    assert config.settings == {**WRITTEN, "FORCED": "7"}
    assert (config.runtime_env.get("env_vars") or config.env) == config.settings


def test_variables_from_an_anchor_are_as_written_too() -> None:
    config = parse_release_config(f"common: &c {{A: NO, NO: 1}}\n{GOOD}\nenv: {{<<: *c, B: 010}}".encode())

    assert config.env == {"A": "NO", "NO": "1", "B": "010"}


def test_two_merged_anchors_are_no_repeated_key() -> None:
    merged = "a: &a {A: x}\nb: &b {B: y}"
    config = parse_release_config(f"{merged}\n{GOOD}\nenv:\n  <<: *a\n  <<: *b\n".encode())

    assert config.env == {"A": "x", "B": "y"}


@pytest.mark.parametrize("value", ["[1]", "{a: b}", "null", ""])
@pytest.mark.parametrize("place", ["env: {{X: {}}}", "runtime_env: {{env_vars: {{X: {}}}}}"])
def test_a_variable_that_is_no_text_is_rejected(place: str, value: str) -> None:
    with pytest.raises(ReleaseInvalidError, match=r"X must be text: write it in quotes"):
        parse_release_config(f"{GOOD}\n{place.format(value)}".encode())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code: c\nversion: '1'\nactions: {}\nruntime_env: {env_vars: [1]}", "env_vars must be a mapping"),
        (f"{GOOD}\ncode: dog", "config.yaml has 'code' twice in the mapping"),
        (
            "code: c\nactions:\n  a: {entrypoint: x.A, entrypoint: x.B}",
            "has 'entrypoint' twice in",
        ),
        (f"{GOOD}\nenv: {{A: 1, A: 2}}", "has 'A' twice"),
        (f"{GOOD}\nruntime_env: {{working_dir: ./x}}", "runtime_env must not set working_dir"),
        (f"{GOOD}\nruntime_env: {{py_modules: [./x]}}", "must not set py_modules"),
        (f"{GOOD}\nruntime_env: {{pip: [x], conda: {{dependencies: [x]}}}}", "must set one of conda, pip"),
        (f"{GOOD}\nruntime_env: {{image_uri: x/y}}", "must not set image_uri"),
        (f"{GOOD}\nruntime_env: {{pip: requirements.txt}}", "pip must be a list or a mapping"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("", "must be a mapping"),
        ("[1, 2]", "must be a mapping"),
        ("code: [", "not valid YAML"),
        ("code: cat\nversion: '1'", "actions is missing"),
        ("code: cat\nversion: 1.10\nactions: {}", "version must be text: write it in quotes"),
        ("code: c\nversion: '1'\nactions: {a: {}}", "actions.a.entrypoint is missing"),
        ("code: c\nversion: '1'\nactions: {a: {entrypoint: Model}}", "actions.a.entrypoint must look like"),
        ("code: c\nversion: '1'\nactions: {a: {entrypoint: ../x.Model}}", "must look like"),
        ("code: c\nversion: '1'\nactions: {}\npackage_manager: conda", "package_manager"),
        ("code: c\nversion: '1'\nactions: {}\nenv: {A: [1]}", "env.A"),
        ("!!python/object/apply:os.system [echo]", "not valid YAML"),
        ("a: &a [*a]", "contains itself"),
        ("a: 2026-13-45", "not valid YAML"),
        ("[" * 5000, "config.yaml"),
        ("code: !!int ''", "not valid YAML: a value does not fit its tag"),
        ("code: !!float ''", "does not fit its tag"),
        ("code: !!bool x", "does not fit its tag"),
        ("code: !!timestamp x", "does not fit its tag"),
        (f"code: !!float 1{':59' * 300}", "does not fit its tag"),
        (f"? 0x{'f' * 5000}\n: 1", "not valid YAML"),
        ("x" * (MAX_CONFIG_BYTES + 1), "larger than"),
    ],
)
def test_mistake_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ReleaseInvalidError) as caught:
        parse_release_config(text.encode())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_alias_bomb_is_rejected_without_expanding_it() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ReleaseInvalidError, match="once its aliases are expanded"):
        parse_release_config("\n".join(levels).encode())


def test_bytes_that_are_not_text_are_rejected() -> None:
    with pytest.raises(ReleaseInvalidError, match="not valid YAML"):
        parse_release_config(b"\xff\xfe\x00")
