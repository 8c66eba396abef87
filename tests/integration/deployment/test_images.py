"""Dockerfile and compose file, without a container engine: by linter and schema, and what is promised."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.integration.deployment.compose import ROOT, compose_file, health_check, services
from worker.settings import Settings

SCHEMAS = Path(__file__).with_name("schemas")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXACT_TAG = re.compile(r"[a-z-]+:\d+\.\d+\.\d+(-[a-z]+)?")


def dockerfile_steps(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(f"{name} ") for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.prefix) / "bin")) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: make deployment")

    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "")


def test_images_run_as_a_number_that_is_not_root() -> None:
    assert dockerfile_steps("USER") == ["10001:10001"]


def test_the_image_of_workers_is_the_default_and_checks_them() -> None:
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]

    assert last_stage.startswith("runtime AS worker\n")
    assert (
        'HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["synapse-worker", "live"]'
        in last_stage
    )


def test_the_builder_gets_what_it_copies_and_no_more() -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in patterns if line.startswith("!")]
    copied = [
        source for step in dockerfile_steps("COPY") if "--from" not in step for source in step.split()[:-1]
    ]

    assert "*" in patterns
    assert sorted(set(copied)) == sorted(sent)
    assert all((ROOT / source).exists() for source in copied)
    assert not any(fnmatch.fnmatch(secret, pattern) for secret in (".env", "secrets") for pattern in sent)


def test_the_compose_file_is_one_by_its_schema() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())

    assert list(jsonschema.Draft7Validator(schema).iter_errors(compose_file())) == []


@pytest.mark.parametrize("name", services())
def test_a_service_is_restricted_and_exact(name: str) -> None:
    service = services()[name]

    assert service["read_only"] is True
    assert service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    uid, _, gid = service["user"].partition(":")
    assert uid.isdigit()
    assert gid.isdigit()
    assert "0" not in (uid, gid)
    assert EXACT_TAG.fullmatch(service["image"]), service["image"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", services())
def test_a_service_is_watched(name: str) -> None:
    service = services()[name]

    if "worker worker" in service["command"]:
        assert service["build"]["target"] == "worker"
        assert "healthcheck" not in service
    else:
        assert health_check(service)


@pytest.mark.parametrize("name", services())
def test_no_secret_is_a_variable(name: str) -> None:
    environment: dict[str, Any] = services()[name].get("environment", {})
    files = {value for value in environment.values() if value.startswith("/run/secrets/")}
    hidden = [
        name
        for name, field in Settings.model_fields.items()
        if "Secret" in str(field.annotation) or name.endswith(("redis_url", "broker_url"))
    ]

    assert not {name.upper() for name in hidden} & environment.keys()
    assert {Path(file).name for file in files} <= set(services()[name].get("secrets", []))


def test_every_secret_is_one_that_the_script_writes(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    script = ROOT / "deploy" / "compose" / "make-secrets"
    declared = {Path(secret["file"]).name for secret in compose_file()["secrets"].values()}

    subprocess.run([script, folder], check=True, capture_output=True)

    assert {path.name for path in folder.iterdir()} == declared
    assert {name for service in services().values() for name in service.get("secrets", [])} == declared
    # And they are not to be read by others, but by the containers, whatever the number of their user
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}


def test_secrets_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / "synapse_access_token").write_text("mine\n")

    for _ in range(2):
        subprocess.run(
            [ROOT / "deploy" / "compose" / "make-secrets", tmp_path], check=True, capture_output=True
        )

    assert (tmp_path / "synapse_access_token").read_text() == "mine\n"
    password = (tmp_path / "redis_password").read_text().strip()
    assert f":{password}@" in (tmp_path / "redis_url").read_text()
    assert f">{password} " in (tmp_path / "redis_acl").read_text()
