"""Releases generated from the templates of the published SDK, with the least filled in.

Runs in the SDK's Python. `synapse plugin create` asks questions for some templates; its function does not.
"""

import shutil
from pathlib import Path

from rich.console import Console
from synapse_sdk.cli.plugin.create import (  # type: ignore[import-not-found]
    PluginSpec,
    create_plugin,
)
from synapse_sdk.plugins.enums import PluginCategory  # type: ignore[import-not-found]

VERSION = "0.1.0"
EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "sdk@1.0.0"

FROM_FILE = """
        self.log_message('reads {name}', name=data_file_name)
        self.set_progress(1, 2, 'reading')
        self.set_metrics({'files': 1}, 'reading')
        self.log_metric('read', 'file', 1, size=2)
        return {'label': data_file_name, 'project': self.context.params['project']}"""
TO_TASK = {
    """
        # TODO: Implement file-based conversion logic here.
        return {}""": FROM_FILE,
    """
        #   }
        return {}""": """
        #   }
        text = {'text': primary_file_name, **(pre_processor_params or {})}
        return {'model': model_id, 'method': 'post', 'json': text}""",
}
INFERENCE = {
    """
    # TODO: Define your inference input fields here.
    pass""": """
    text: str""",
    """
        raise NotImplementedError(
            'Implement model loading here. '
            "model_info['path'] contains the extracted model directory."
        )""": """
        return (model_info['path'] / 'greeting.txt').read_text()""",
    """
        raise NotImplementedError(
            'Implement inference logic here. '
            'Use `model = await self.get_model()` to get the loaded model.'
        )""": """
        return {'said': f'{await self.get_model()} {data.text}', 'backend': self.backend_url}""",
}
INFERENCE_METHOD = "    method: serve\n"
RESOURCES = "    required_resources: {required_cpu_count: 1, required_gpu_count: 0}\n"
DEPLOYMENT = {"default=4": "default=1"}


def generate(store: Path, category: str, code: str) -> Path:
    """A release of the template as it is; returns its folder."""
    spec = PluginSpec(
        name=f"A {category}", code=code, version=VERSION, category=PluginCategory(category), description="x"
    )
    made = create_plugin(spec, store, Console(quiet=True))
    release = Path(made).rename(store / f"{code}@{VERSION}")
    # The nodes of the tests' cluster have the SDK: Ray would install it once more, for a minute.
    (release / "requirements.txt").write_text("")
    # A dispatch asks for a tenth of a GPU where nothing is declared, and the tests' cluster has none.
    config = (release / "config.yaml").read_text()
    (release / "config.yaml").write_text(config.replace(INFERENCE_METHOD, INFERENCE_METHOD + RESOURCES))
    return release


def fill_in(release: Path, module: str, changes: dict[str, str]) -> None:
    """Replace what a template leaves to its author."""
    path = release / "plugin" / f"{module}.py"
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, f"the template of {module} has no {old!r}"
        text = text.replace(old, new)
    path.write_text(text)


def write_pre_annotation(store: Path) -> None:
    """`pre_annotation`: a to_task by both methods."""
    fill_in(generate(store, "pre_annotation", "sdk-to-task"), "to_task", TO_TASK)


def write_neural_net(store: Path) -> Path:
    """`neural_net`: a deployment with FastAPI and a model."""
    release = generate(store, "neural_net", "sdk-net")
    fill_in(release, "inference", INFERENCE)
    fill_in(release, "deployment", DEPLOYMENT)
    return release


DECORATED = '''
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from synapse_sdk.plugins import BaseServeDeployment

app = FastAPI()


class Input(BaseModel):
    text: str


@serve.deployment
@serve.ingress(app)
class InferenceDeployment(BaseServeDeployment):
    """The form of the SDK's documentation."""

    async def _get_model(self, model_info):
        return (model_info['path'] / 'greeting.txt').read_text()

    @app.post('/')
    async def root(self, body: dict):
        return await self.handle_inference(body=body, input_model=Input, runner=self.infer)

    async def infer(self, data):
        return {'said': f'{await self.get_model()} {data.text}', 'backend': self.backend_url}
'''


def write_decorated(store: Path) -> None:
    """`neural_net` with the decorated class of the SDK's documentation in place of the template's."""
    release = generate(store, "neural_net", "sdk-decorated")
    (release / "plugin" / "inference.py").write_text(DECORATED)
    fill_in(release, "deployment", DEPLOYMENT)


def copy_example(store: Path) -> None:
    """The example release of this repository that is written for the SDK."""
    release = shutil.copytree(EXAMPLE, store / EXAMPLE.name)
    (release / "requirements.txt").write_text("")  # see `generate`


def write_custom_execute(store: Path) -> None:
    """`neural_net` whose deployment does something of its own in `execute`."""
    release = generate(store, "neural_net", "sdk-execute")
    fill_in(release, "inference", INFERENCE)
    own = {"        self.deploy()\n": "        print('deploys in its own way')\n        self.deploy()\n"}
    fill_in(release, "deployment", {**DEPLOYMENT, **own})


STEPS = """
    def setup_steps(self, registry):
        \"\"\"Two steps, of which the second fails when it is told to.\"\"\"
        registry.register(Write())
        registry.register(Check())


from synapse_sdk.plugins.steps import BaseStep, StepResult


class Write(BaseStep):
    name = 'write'
    progress_weight = 0.5

    def execute(self, context):
        print('writes', flush=True)
        return StepResult(success=True, rollback_data={'wrote': 1})

    def rollback(self, context, result):
        print('takes back', result.rollback_data, flush=True)


class Check(BaseStep):
    name = 'check'
    progress_weight = 0.5

    def execute(self, context):
        context.success_count = 7
        failed = context.params['description'] == 'fail'
        return StepResult(success=not failed, error='it does not fit' if failed else None)
"""


def write_steps(store: Path) -> None:
    """`pre_annotation` whose steps are its own, with a rollback."""
    release = generate(store, "pre_annotation", "sdk-steps")
    path = release / "plugin" / "to_task.py"
    path.write_text(path.read_text() + STEPS)
