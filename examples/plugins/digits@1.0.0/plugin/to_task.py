"""Annotates each image with its digit: read from a label file, or asked of the classifier."""

from typing import Any

import httpx

from worker.actions import ToTaskAction

http = httpx.Client(timeout=10)  # one, so that its connections are used again


class ToTask(ToTaskAction):
    def convert_data_from_file(
        self,
        primary_file_url: str,
        primary_file_name: str,
        data_file_url: str,
        data_file_name: str,
        task_data: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        answer = http.get(data_file_url)
        answer.raise_for_status()
        return {"classification": {"digit": answer.json()["label"]}}

    def convert_data_from_inference(
        self, inference_data: dict[str, Any], task_data: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"classification": {"digit": inference_data["digit"]}}

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
        return {
            "model": model_id,
            "method": "post",
            "json": {"image_url": primary_file_url, **pre_processor_params},
        }
