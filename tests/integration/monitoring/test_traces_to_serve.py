"""A trace from the publisher through a deployment to the model on a real Ray Serve."""

import json
from pathlib import Path

import pytest

from shared import Publisher, ToTaskMessage
from tests.harness.otlp_receiver import OtlpReceiver
from tests.harness.recorded_spans import PARENT
from tests.integration.workflows.ray_harness import RayHarness, write_release
from worker.sandbox import Sandbox

LISTENING = """
from fastapi import FastAPI, Request
from ray import serve
from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction

app = FastAPI()

@serve.deployment
@serve.ingress(app)
class Served(BaseServeDeployment):
    @app.post("/")
    async def root(self, request: Request):
        return {"heard": request.headers.get("traceparent")}

class Deployment(BaseDeploymentAction):
    entrypoint = Served

class ToTask(ToTaskAction):
    def setup_inference_params(self, primary_file_url, primary_file_name, data_files, **more):
        return {"model": more["model_id"], "method": "post", "json": {}}

    def convert_data_from_inference(self, inference_data, task_data=None):
        return inference_data
"""


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_model_hears_the_trace_of_the_run_that_deployed_it(tmp_path: Path) -> None:
    # Given a pre-processor that is not deployed, whose model says which trace it is called in
    plugins, receiver = tmp_path / "plugins", OtlpReceiver()
    write_release(plugins, "listening", LISTENING)
    config = plugins / "listening@1.0.0" / "config.yaml"
    declared = json.loads(config.read_text())
    declared["actions"]["inference"]["required_resources"] = {"num_cpus": 1, "num_gpus": 0}
    config.write_text(json.dumps(declared))
    with Sandbox(tmp_path / "sandbox", plugins_dir=plugins, num_cpus=4) as sandbox:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        harness = RayHarness(sandbox, sandbox.start_worker(env=env))

        # When a run of a publisher with a trace needs it
        job, project = harness.new_job(plugin="listening@1.0.0", action="to_task"), harness.new_project(3)
        params = harness.to_task_params(
            project, method="inference", pre_processor=harness.release_id("listening"), model=1
        )
        message = {"job": job, "plugin": "listening@1.0.0", "params": params}
        with Publisher(harness.redis_url) as publisher:
            publisher.publish(ToTaskMessage.model_validate(message), traceparent=PARENT)
        ended = harness.wait_for_end(job)
        assert ended["status"] == "SUCCEEDED", ended["result"]
        tasks = harness.annotated_tasks(project)
    receiver.close()

    # Then the model was called in that trace, and in the names of the steps of both runs
    heard = [task["data"]["heard"].split("-") for task in tasks]
    assert {trace for _, trace, *_ in heard} == {PARENT.split("-")[1]}
    assert [int(flags, 16) & 1 for *_, flags in heard].count(1) == 1
    names = {span.name for span in receiver.in_trace(PARENT.split("-")[1])}
    assert names >= {
        "process pre_processor.dispatch",
        "process deploy",
        "process deploy.serve_run",
        "process deploy.register",
        "process to_task.annotate",
        "POST resources/feasibility/",
        "POST plugins/{id}/run/",
        "POST serve_applications/",
    }
