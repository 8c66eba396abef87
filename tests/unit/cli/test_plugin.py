"""`plugin list` and `plugin check` on broken releases."""

import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.unit.cli.command_line import run_failing
from worker.cli.main import app
from worker.cli.plugin import package_problems, resource_problems
from worker.plugins import PluginStore, ReleaseConfig


def given_release(folder: Path, config: str) -> str:
    (folder / "a@1").mkdir()
    (folder / "a@1" / "config.yaml").write_text(config)
    return str(folder)


def test_action_named_like_markup_is_listed(tmp_path: Path) -> None:
    config = 'code: a\nversion: "1"\nactions: {"[/x]": {entrypoint: p.B}, "y\\ud800": {entrypoint: p.B}}'
    folder = given_release(tmp_path, config)

    done = CliRunner().invoke(app, ["plugin", "list", "--plugins-dir", folder])

    assert done.exit_code == 0, done.exception
    assert "[/x], y" in done.stdout


def test_config_that_is_not_yaml_is_a_problem_of_its_release(tmp_path: Path) -> None:
    folder = given_release(tmp_path, "code: !!int ''")

    done = CliRunner().invoke(app, ["plugin", "list", "--plugins-dir", folder])

    assert done.exit_code == 0, done.exception
    assert "not valid YAML" in " ".join(done.stdout.split())
    assert "not valid YAML" in run_failing("plugin", "check", "a@1", "--plugins-dir", folder)


@pytest.mark.parametrize("source", ["(" * 3000, "x = " + "-" * 100_000 + "1", "x = " + "a." * 50_000 + "b"])
def test_unparsable_code_is_a_problem_of_its_release(tmp_path: Path, source: str) -> None:
    folder = given_release(tmp_path, 'code: a\nversion: "1"\nactions: {x: {entrypoint: p.B}}')
    (tmp_path / "a@1" / "p.py").write_text(source)

    assert "error: a@1: p.py" in run_failing("plugin", "check", "a@1", "--plugins-dir", folder)


def test_module_that_hides_the_standard_library_fails_the_check(tmp_path: Path) -> None:
    folder = given_release(tmp_path, 'code: a\nversion: "1"\nactions: {x: {entrypoint: p.B}}')
    (tmp_path / "a@1" / "p.py").write_text("class B: pass")
    (tmp_path / "a@1" / "types.py").touch()

    assert "'types' (Python's standard library)" in run_failing(
        "plugin", "check", "a@1", "--plugins-dir", folder
    )


def test_a_package_beyond_rays_store_needs_another_one(tmp_path: Path) -> None:
    # Given a release of 300 KB that no packing makes smaller
    folder = given_release(tmp_path, 'code: a\nversion: "1"\nactions: {x: {entrypoint: p.B}}')
    (tmp_path / "a@1" / "p.py").write_text("class B: pass")
    (tmp_path / "a@1" / "weights").write_bytes(random.Random(1).randbytes(300_000))
    release = PluginStore(Path(folder), tmp_path / "cache", 10**6).get("a@1")

    # Then it fits or does not
    assert package_problems(release) == []
    [problem] = package_problems(release, 200_000)
    assert problem.startswith("its package has 0.3 MB, and Ray's own store takes less than 0.190735 MB: set")
    # And one that only packing makes small enough fits
    (tmp_path / "a@1" / "weights").write_bytes(b"0" * 300_000)
    assert package_problems(release, 200_000) == []


CLUSTER: dict[str, Any] = {"cpu": {"total": 4.0}, "gpu": {"total_gpus": 0}, "memory": {"total": 1000.0}}


@pytest.mark.parametrize(
    ("resources", "problems"),
    [
        ({"required_cpu_count": 4}, []),
        ({"required_cpu_count": 8}, ["action 'x' asks for num_cpus 8, and the cluster has 4"]),
        ({"num_gpus": 0.5}, ["action 'x' asks for num_gpus 0.5, and the cluster has 0"]),
        ({"memory": 2000}, ["action 'x' asks for memory 2000, and the cluster has 1000"]),
        ({"required_gpu_count": 0, "memory": "much"}, []),
    ],
)
def test_resources_beyond_the_clusters_are_a_problem(
    resources: dict[str, object], problems: list[str]
) -> None:
    action = {"entrypoint": "p.B", "required_resources": resources}
    config = ReleaseConfig.model_validate({"code": "a", "version": "1", "actions": {"x": action}})

    assert resource_problems(config, CLUSTER) == problems
    # And what an agent does not say is no problem
    assert resource_problems(config, {"cpu": None}) == []


def test_an_agent_that_is_away_is_no_problem(tmp_path: Path) -> None:
    folder = given_release(tmp_path, 'code: a\nversion: "1"\nactions: {x: {entrypoint: p.B}}')
    (tmp_path / "a@1" / "p.py").write_text("class B: pass")
    options = ["--plugins-dir", folder, "--agent-url", "http://127.0.0.1:1"]

    done = CliRunner().invoke(app, ["plugin", "check", "a@1", *options])

    assert done.exit_code == 0, done.exception
    assert "resources not compared, the agent does not answer" in done.stdout
