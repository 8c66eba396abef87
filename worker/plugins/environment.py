"""The Ray runtime environment of a release."""

import shlex
from typing import Any

from worker.plugins.errors import ReleaseInvalidError
from worker.plugins.store import Release

WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
"""Ray puts the unpacked package's folder in place of this."""


def runtime_env(release: Release, package: str, env: dict[str, str]) -> dict[str, Any]:
    """What config.yaml's `runtime_env` says, with the release's package, requirements and environment."""
    declared = dict(release.config.runtime_env)
    if "working_dir" in declared or "py_modules" in declared:
        raise ReleaseInvalidError(f"{release.name}: runtime_env must not set working_dir or py_modules")
    variables = {str(key): str(value) for key, value in (declared.pop("env_vars", None) or {}).items()}
    installs = {} if {"pip", "uv", "conda"} & declared.keys() else requirements(release)
    return {**declared, **installs, "working_dir": package, "env_vars": {**variables, **env}}


def requirements(release: Release) -> dict[str, Any]:
    """requirements.txt for the release's package manager; nothing when there is none."""
    file = release.path / "requirements.txt"
    if not file.is_file():
        return {}
    packages: list[str] = []
    options: list[str] = []
    for line in file.read_text().replace("\\\n", " ").splitlines():
        text = line.split(" #")[0].strip()
        if text.startswith("-"):
            options += shlex.split(text)
        elif text and not text.startswith("#"):
            packages.append(text)
    if not packages:
        return {}
    if release.config.wheels_dir:
        options += ["--find-links", f"{WORKING_DIR}/{release.config.wheels_dir}"]
    manager = release.config.package_manager
    key = "pip_install_options" if manager == "pip" else "uv_pip_install_options"
    return {manager: {"packages": packages, **({key: options} if options else {})}}
