"""The Helm chart, rendered by Helm itself."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.integration.deployment.compose import ROOT

CHART = ROOT / "deploy" / "chart"
NEEDED = {"settings": {"SYNAPSE_HOST": "https://backend.example"}}
Manifest = dict[str, Any]


def render(values: Mapping[str, Any] = NEEDED) -> list[Manifest]:
    """The manifests of a release `synapse`; raises Helm's error where the values are wrong."""
    helm = pytest.importorskip("helm_python", reason="Helm is not installed: make deployment")
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        texts = chart.render(values, name="synapse", namespace="synapse")
    return [manifest for text in texts.values() for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """The manifests of a kind by their component."""
    return {
        manifest["metadata"]["labels"]["app.kubernetes.io/component"]: manifest
        for manifest in manifests
        if manifest["kind"] == kind
    }


def redis_keys(scaled: Manifest) -> dict[str, str]:
    """What the triggers of a ScaledObject count, by their names in its formula."""
    return {trigger["name"]: trigger["metadata"]["listName"] for trigger in scaled["spec"]["triggers"]}
