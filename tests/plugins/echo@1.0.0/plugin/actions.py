"""Says what it is given, and who says it."""

from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction


class Echo(BaseServeDeployment):
    async def _get_model(self, model_info):
        return None

    async def infer(self, data):
        return {"said": data["text"], "by": "1.0.0"}


class Deployment(BaseDeploymentAction):
    entrypoint = Echo


class ToTask(ToTaskAction):
    def convert_data_from_file(
        self, primary_file_url, primary_file_name, data_file_url, data_file_name, task_data=None
    ):
        if "bad" in data_file_name:
            raise ValueError(f"cannot read {data_file_name}")
        return {"label": data_file_name}

    def setup_inference_params(
        self, primary_file_url, primary_file_name, data_files, *, model_id,
        pre_processor_params, pre_processor_config, task_data,
    ):  # fmt: skip
        return {"model": model_id, "method": "post", "json": {"text": primary_file_name}}

    def convert_data_from_inference(self, inference_data, task_data=None):
        return {"said": inference_data["said"], "by": inference_data["by"]}
