"""A `to_task` in the SDK's form."""

from typing import Any

from synapse_sdk.plugins.actions.to_task import ToTaskAction


class ToTask(ToTaskAction):
    def convert_data_from_file(
        self,
        primary_file_url: str,
        primary_file_name: str,
        data_file_url: str,
        data_file_name: str,
        task_data: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        self.log_message(f"reads {data_file_name}")
        return {"label": data_file_name}

    def setup_inference_params(
        self,
        primary_file_url: str,
        primary_file_name: str,
        data_files: list[dict[str, Any]],
        *,
        model_id: int,
        pre_processor_params: dict[str, Any],
        pre_processor_config: dict[str, Any],
        task_data: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {"model": model_id, "method": "post", "json": {"text": primary_file_name}}

    def convert_data_from_inference(
        self, inference_data: dict[str, Any], task_data: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"label": inference_data["label"]}
