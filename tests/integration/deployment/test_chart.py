"""The Helm chart by the schemas of Kubernetes and KEDA, and what it promises beside them."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kombu.transport.redis import Channel

from tests.integration.deployment.chart import CHART, NEEDED, Manifest, metric, of_kind, redis_keys, render
from tests.integration.deployment.compose import ROOT, arguments, services
from worker.broker.keys import delayed_key, unacked_key
from worker.runs.keys import heartbeats_key
from worker.settings import Settings
from worker.to_task.annotate import MAX_PASS_SECONDS

SCHEMAS = Path(__file__).with_name("schemas")
OLDEST, NEWEST = "1.27", "1.37"
PAGES = ("flower", "console")
ROLES = ("deploy", "to_task", "annotate", "logs", "control")
EVERYTHING = {
    **NEEDED,
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "pagesFrom": [{"podSelector": {"matchLabels": {"app": "ingress"}}}],
    },
    "nodeSelector": {"pool": "cpu"},
    "tolerations": [{"key": "pool", "operator": "Exists"}],
    "podAnnotations": {"team": "labelling"},
    "autoscaling": {"redis": {"username": "keda", "tls": True, "sentinelMaster": "mymaster"}},
}


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return render()


def pod_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    deployments = of_kind(manifests, "Deployment")
    return {name: deployment["spec"]["template"]["spec"] for name, deployment in deployments.items()}


def container_of(pod: Manifest) -> Manifest:
    (container,) = pod["containers"]
    return container


def test_helm_finds_nothing_to_mend() -> None:
    helm = pytest.importorskip("helm_python", reason="Helm is not installed: make deployment")

    found = helm.lint(str(CHART), values=NEEDED)

    assert not found["errors"], found
    assert not [message for message in found["messages"] or () if "icon" not in str(message)], found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", [NEEDED, EVERYTHING], ids=["defaults", "everything"])
def test_manifests_are_valid_for_kubernetes(values: dict[str, Any], version: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="not installed: make deployment")

    found = [manifest for manifest in render(values) if not manifest["apiVersion"].startswith("keda.sh/")]
    assert {"Deployment", "PodDisruptionBudget", "NetworkPolicy"} <= {each["kind"] for each in found}

    mistakes = []
    for manifest in found:
        try:
            kubernetes.validate(manifest, version, strict=True)
        except (kubernetes.ValidationError, kubernetes.InvalidSchemaError) as error:
            mistakes.append(f"{manifest['kind']} {manifest['metadata']['name']}: {error}")
    assert mistakes == []


@pytest.mark.parametrize("values", [NEEDED, EVERYTHING], ids=["defaults", "everything"])
def test_manifests_are_valid_for_keda(values: dict[str, Any]) -> None:
    found = [manifest for manifest in render(values) if manifest["apiVersion"].startswith("keda.sh/")]
    assert {manifest["kind"] for manifest in found} == {"ScaledObject", "TriggerAuthentication"}

    for manifest in found:
        definition = yaml.safe_load((SCHEMAS / f"keda.sh_{manifest['kind'].lower()}s.yaml").read_text())
        (version,) = definition["spec"]["versions"]
        schema = _without_unknown_keys(version["schema"]["openAPIV3Schema"])
        jsonschema.Draft7Validator(schema).validate(manifest)


def _without_unknown_keys(schema: Any) -> Any:
    """As the API server prunes what a definition does not know: a key with a typing error is one of these."""
    if isinstance(schema, list):
        return [_without_unknown_keys(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _without_unknown_keys(inner) for key, inner in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.mark.parametrize("values", [NEEDED, EVERYTHING], ids=["defaults", "everything"])
def test_pods_pass_the_restricted_standard(values: dict[str, Any]) -> None:
    for name, pod in pod_specs(render(values)).items():
        context = container_of(pod)["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["automountServiceAccountToken"] is False


def test_the_service_account_has_no_token(manifests: list[Manifest]) -> None:
    (account,) = of_kind(manifests, "ServiceAccount").values()

    assert account["automountServiceAccountToken"] is False
    assert not [manifest for manifest in manifests if "Role" in manifest["kind"]]


def test_commands_are_those_of_the_compose_file(manifests: list[Manifest]) -> None:
    pods = pod_specs(manifests)
    assert pods.keys() == {role.replace("_", "-") for role in (*ROLES, *PAGES)}

    for service in (*ROLES, *PAGES):
        command = container_of(pods[service.replace("_", "-")])["command"]
        assert command == arguments(services()[service]["command"])


def test_pods_have_the_settings_of_the_compose_file(manifests: list[Manifest]) -> None:
    pods = pod_specs(manifests)

    for role in ROLES:
        found = {entry["name"] for entry in container_of(pods[role.replace("_", "-")])["env"]}
        assert found == set(services()[role]["environment"])
        assert {name.removesuffix("_FILE").lower() for name in found if "RAY_AUTH" not in name} <= set(
            Settings.model_fields
        )


def test_secrets_are_files_that_are_mounted(manifests: list[Manifest]) -> None:
    for pod in pod_specs(manifests).values():
        container = container_of(pod)
        (secrets,) = (volume["projected"] for volume in pod["volumes"] if volume["name"] == "secrets")
        paths = {
            f"/run/secrets/{item['path']}"
            for source in secrets["sources"]
            for item in source["secret"]["items"]
        }
        named = {entry["value"] for entry in container["env"] if "/run/secrets/" in entry["value"]}
        assert named == paths
        assert not [entry for entry in container["env"] if "valueFrom" in entry]
        assert "envFrom" not in container


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "SYNAPSE_HOST"),
        ({"settings": {"SYNAPSE_HOST": "https://x", "SYNAPSE_ACCESS_TOKEN": "x"}}, "SYNAPSE_ACCESS_TOKEN"),
        ({"settings": {"SYNAPSE_HOST": "https://x", "WORKER_WEBHOOK_SECRET": "x"}}, "WORKER_WEBHOOK_SECRET"),
        ({"settings": {"SYNAPSE_HOST": "https://x", "WORKER_CONSOLE_TOKEN": "x"}}, "WORKER_CONSOLE_TOKEN"),
        (
            {"settings": {"SYNAPSE_HOST": "https://x", "OTEL_EXPORTER_OTLP_HEADERS": "x"}},
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        ({**NEEDED, "image": {"tag": "latest"}}, "tag"),
        ({**NEEDED, "roles": {"control": {"replicas": 0}}}, "control"),
        ({**NEEDED, "roles": {"logs": {"scaling": {"minReplicas": 0}}}}, "logs"),
        ({**NEEDED, "roles": {"deploy": {"concurrency": 1}}}, "concurrency"),
        ({**NEEDED, "roles": {"deploy": {"replica": 2}}}, "replica"),
        ({**NEEDED, "roles": {"deploy": {"scaling": {"maxReplica": 3}}}}, "maxReplica"),
    ],
)
def test_values_that_would_not_work_are_rejected(values: dict[str, Any], why: str) -> None:
    helm = pytest.importorskip("helm_python", reason="Helm is not installed: make deployment")

    with pytest.raises(helm.HelmError, match=why):
        render(values)


def test_numbers_are_written_as_a_worker_reads_them() -> None:
    # Given a large whole number, which Helm's own text of a number would have an exponent of, and others
    settings = {"WORKER_STREAM_MAX_BYTES": 52_428_800, "WORKER_PLUGIN_TIMEOUT_SECONDS": 0.5}

    manifests = render({"settings": {**NEEDED["settings"], **settings, "WORKER_REDIS_PREFIX": "1e6"}})

    # Then pods have them as they were given
    (container,) = pod_specs(manifests)["annotate"]["containers"]
    found = {entry["name"]: entry["value"] for entry in container["env"]}
    assert {name: found[name] for name in settings} == {name: str(value) for name, value in settings.items()}
    assert found["WORKER_REDIS_PREFIX"] == "1e6"


def test_the_page_is_given_the_names_and_proxies_of_an_ingress() -> None:
    # Given an ingress with TLS before the page
    page = {"hostNames": ["console.example"], "forwardedAllowIps": "10.0.0.0/8,fd00::/8"}

    manifests = render({**NEEDED, "console": page})

    # Then the page believes what its proxies say, and nobody without them
    options = ["--host-name=console.example", "--forwarded-allow-ips=10.0.0.0/8,fd00::/8"]
    assert container_of(pod_specs(manifests)["console"])["command"][-2:] == options
    default = container_of(pod_specs(render())["console"])["command"]
    assert not [option for option in default if "forwarded" in option]


def test_a_worker_has_the_time_that_a_step_may_take(manifests: list[Manifest]) -> None:
    default: float = Settings.model_fields["worker_plugin_timeout_seconds"].default

    for name, pod in pod_specs(manifests).items():
        if name not in PAGES:
            assert pod["terminationGracePeriodSeconds"] >= default + MAX_PASS_SECONDS
    for role in ROLES:
        assert services()[role]["stop_grace_period"] == "6m"  # the same


def test_each_role_is_disrupted_one_pod_after_the_other(manifests: list[Manifest]) -> None:
    budgets = of_kind(manifests, "PodDisruptionBudget")

    assert budgets.keys() == {role.replace("_", "-") for role in ROLES}
    for name, budget in budgets.items():
        assert budget["spec"]["maxUnavailable"] == 1
        deployment = of_kind(manifests, "Deployment")[name]
        assert budget["spec"]["selector"] == deployment["spec"]["selector"]
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_probes_ask_the_port_that_the_worker_opens(manifests: list[Manifest]) -> None:
    for role in ROLES:
        container = container_of(pod_specs(manifests)[role.replace("_", "-")])
        settings = {entry["name"]: entry["value"] for entry in container["env"]}
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        asked = {
            name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
        }

        assert {name: get["path"] for name, get in asked.items()} == {
            "startupProbe": "/live",
            "livenessProbe": "/live",
            "readinessProbe": "/ready",
        }
        assert {ports[get["port"]] for get in asked.values()} == {int(settings["WORKER_HTTP_PORT"])}
        assert settings["WORKER_HTTP_HOST"] == "0.0.0.0"


def test_scaled_roles_count_their_messages_and_what_lives(manifests: list[Manifest]) -> None:
    scaled = of_kind(manifests, "ScaledObject")
    assert scaled.keys() == {"deploy", "to-task", "annotate"}

    for name, object_ in scaled.items():
        queue = name.replace("-", "_")
        lists = [queue, *(f"{queue}{Channel.sep}{step}" for step in Channel.priority_steps if step)]
        assert list(redis_keys(object_).values()) == [
            *lists,
            delayed_key(queue),
            unacked_key(),
            heartbeats_key(),
        ]
        # What has a ScaledObject leaves the number of replicas to it
        assert "replicas" not in of_kind(manifests, "Deployment")[name]["spec"]


@pytest.mark.parametrize(
    ("role", "counted", "expected"),
    [
        ("deploy", {}, 0),
        ("deploy", {"waiting0_0": 20, "waiting0_9": 4, "held": 50}, 24),
        ("deploy", {"held": 50}, 1),
        ("deploy", {"delayed0": 3}, 1),
        ("deploy", {"live": 2}, 1),
        ("annotate", {"waiting0_3": 4, "held": 18, "live": 1}, 22),
    ],
)
def test_a_role_grows_by_its_work_and_stays_for_the_rest(
    manifests: list[Manifest], role: str, counted: dict[str, float], expected: float
) -> None:
    scaled = of_kind(manifests, "ScaledObject")[role]

    counts = dict.fromkeys(redis_keys(scaled), 0.0) | {name: float(count) for name, count in counted.items()}
    assert metric(scaled, counts) == expected


def test_prefixes_of_an_installation_are_those_of_its_keys() -> None:
    settings = {**NEEDED["settings"], "WORKER_REDIS_PREFIX": "staging"}
    values = {"settings": settings, "autoscaling": {"redis": {"keyPrefix": "one:"}}}

    keys = redis_keys(of_kind(render(values), "ScaledObject")["deploy"])

    assert keys["waiting0_0"] == "one:deploy"
    assert keys["delayed0"] == "one:staging:broker:delayed:deploy"
    assert keys["live"] == "staging:live"


def test_without_keda_replicas_are_those_of_the_values() -> None:
    manifests = render({**NEEDED, "autoscaling": {"enabled": False}})

    assert not of_kind(manifests, "ScaledObject")
    assert of_kind(manifests, "Deployment")["annotate"]["spec"]["replicas"] == 1


def test_the_token_of_the_page_is_in_its_pod_alone(manifests: list[Manifest]) -> None:
    pods = pod_specs(manifests)

    assert [name for name, pod in pods.items() if "console-token" in str(pod)] == ["console"]


def test_nobody_reaches_a_worker_unless_the_values_say_so(manifests: list[Manifest]) -> None:
    (policy,) = of_kind(manifests, "NetworkPolicy").values()
    labels = policy["spec"]["podSelector"]["matchLabels"]

    assert policy["spec"]["ingress"] == []
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {
        53,
        443,
        6379,
        10001,
    }
    for deployment in of_kind(manifests, "Deployment").values():
        assert labels.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_the_example_of_a_ray_cluster_fits_the_chart(manifests: list[Manifest]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="not installed: make deployment")
    cluster = yaml.safe_load((ROOT / "deploy" / "kuberay" / "raycluster.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]

    assert values["settings"]["RAY_ADDRESS"] == f"ray://{cluster['metadata']['name']}-head-svc:10001"
    assert values["ray"]["tokenSecret"] == cluster["metadata"]["name"]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes.validate(pod, NEWEST, strict=True)
        assert container_of(pod["spec"])["image"] == container_of(pod_specs(manifests)["deploy"])["image"]
