"""The files of a new release, which work as they are."""

from enum import StrEnum
from pathlib import Path
from typing import Final


class Kind(StrEnum):
    """What a new release is to do."""

    PRE_PROCESSOR = "pre-processor"
    TO_TASK = "to_task"
    BOTH = "both"


CONFIG: Final = """\
name: {code}
code: {code}
version: {version}
category: pre_annotation
description: What it is for.

actions:
"""
CONFIG_DEPLOYMENT: Final = """\
  # Puts the model online on Ray Serve.
  deployment:
    entrypoint: plugin.deployment.Deployment

  # What it needs there; read when a run of to_task has it deployed, too.
  inference:
    entrypoint: plugin.model.Model
    required_resources:
      required_cpu_count: 1
      required_gpu_count: 0
"""
CONFIG_TO_TASK: Final = """\
  # Annotates the tasks of a project: from files, or by a pre-processor.
  to_task:
    entrypoint: plugin.to_task.ToTask
"""
DEPLOYMENT: Final = '''\
"""Puts the model online."""

from plugin.model import Model
from worker.actions import BaseDeploymentAction


class Deployment(BaseDeploymentAction):
    entrypoint = Model
'''
MODEL: Final = '''\
"""The model, as one replica of Ray Serve has it."""

from typing import Any

from worker.actions import BaseServeDeployment


class Model(BaseServeDeployment):
    """Answers `{"text": ...}`, the name of a task's primary file, with a label."""

    def __init__(self, backend_url: str) -> None:
        super().__init__(backend_url)
        # Once a replica: load weights here; those of a platform's model in `_get_model`.
        self._labels = {"cat": "animal", "car": "vehicle"}

    async def infer(self, data: dict[str, Any]) -> dict[str, Any]:
        text = data["text"].lower()
        return {"label": next((label for word, label in self._labels.items() if word in text), "unknown")}
'''
FASTAPI_MODEL: Final = '''\
"""The model behind routes of its own, as one replica of Ray Serve has it."""

from fastapi import FastAPI
from pydantic import BaseModel
from worker.actions import BaseServeDeployment

app = FastAPI()
LABELS = {"cat": "animal", "car": "vehicle"}


class Request(BaseModel):
    """A body that FastAPI checks: a wrong one is answered with 422."""

    text: str


class Model(BaseServeDeployment):
    """Answers `{"text": ...}`, the name of a task's primary file, with a label."""

    app = app

    @app.get("/")
    async def about(self) -> dict:
        return {"labels": sorted(LABELS.values())}

    @app.post("/")
    async def label(self, request: Request) -> dict:
        text = request.text.lower()
        return {"label": next((label for word, label in LABELS.items() if word in text), "unknown")}
'''
TO_TASK: Final = '''\
"""Makes the data of a task: from a file of its data unit, or from the answer of a pre-processor."""

import json
from typing import Any
from urllib.request import urlopen

from worker.actions import ToTaskAction


class ToTask(ToTaskAction):
    def convert_data_from_file(
        self,
        primary_file_url: str,
        primary_file_name: str,
        data_file_url: str,
        data_file_name: str,
        task_data: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Method `file`: data_file is the file of `target_specification_name`."""
        with urlopen(data_file_url, timeout=30) as response:
            found = json.load(response)
        self.log_message("{name} is a {label}", name=primary_file_name, label=found["label"])
        return {"classification": {"label": found["label"]}}

    def setup_inference_params(
        self,
        primary_file_url: str,
        primary_file_name: str,
        data_files: list[dict[str, Any]],
        *,
        model_id: int | None = None,
        pre_processor_params: dict[str, Any] | None = None,
        pre_processor_config: dict[str, Any] | None = None,
        task_data: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Method `inference`: what the pre-processor is sent; `json` is its body."""
        body = {"text": primary_file_name, **(pre_processor_params or {})}
        return {"model": model_id, "method": "post", "json": body}

    def convert_data_from_inference(
        self, inference_data: dict[str, Any], task_data: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Method `inference`: what the pre-processor has answered."""
        return {"classification": {"label": inference_data["label"]}}
'''
SAMPLE: Final = '{"label": "animal"}\n'
"""A file to try `plugin run --file` with; it lies beside the code, and is a part of the release."""


def files_of(code: str, version: str, kind: Kind, *, fastapi: bool) -> dict[str, str]:
    """The text of each file, by its path in the release."""
    config, files = CONFIG.format(code=code, version=f'"{version}"'), {"plugin/__init__.py": ""}
    if kind is not Kind.TO_TASK:
        config += CONFIG_DEPLOYMENT
        files |= {
            "plugin/deployment.py": DEPLOYMENT,
            "plugin/model.py": FASTAPI_MODEL if fastapi else MODEL,
        }
    if kind is Kind.BOTH:
        config += "\n"
    if kind is not Kind.PRE_PROCESSOR:
        config += CONFIG_TO_TASK
        files |= {"plugin/to_task.py": TO_TASK, "sample.json": SAMPLE}
    return {"config.yaml": config, **files}


def write_release(folder: Path, files: dict[str, str]) -> None:
    """Write the files below a folder that does not exist yet; raises `OSError`."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
