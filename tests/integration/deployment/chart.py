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


# pkg/scalers/redis_scaler.go of KEDA, commit 8b4f083c
KEDA_SCRIPT = """
    local listName = KEYS[1]
    local listType = redis.call('type', listName).ok
    if listType == 'zset' then
        return redis.call('zcard', listName)
    elseif listType == 'set' then
        return redis.call('scard', listName)
    elseif listType == 'hash' then
        return redis.call('hlen', listName)
    elseif listType == 'list' or listType == 'none' then
        return redis.call('llen', listName)
    else
        return redis.error_reply('ERR unsupported key type: ' .. listType)
    end
"""


def metric(scaled: Manifest, counts: Mapping[str, float]) -> float:
    """The formula of a ScaledObject, which Python reads as well, with what its triggers count."""
    formula = scaled["spec"]["advanced"]["scalingModifiers"]["formula"]
    result = eval(formula, {"__builtins__": {}, "max": max, "min": min}, dict(counts))
    assert isinstance(result, float), "KEDA rejects a formula whose result is no float"
    return result


def redis_keys(scaled: Manifest) -> dict[str, str]:
    """What the triggers of a ScaledObject count, by their names in its formula."""
    return {trigger["name"]: trigger["metadata"]["listName"] for trigger in scaled["spec"]["triggers"]}
