"""The page of metrics, the rules for alerts and the dashboard name the metrics that there are."""

import re

import fakeredis
import pytest

from tests.harness.monitoring_files import ROOT, alerts, expressions
from worker import metrics
from worker.monitoring.redis_metrics import Queues, RedisMetrics

PAGE = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")


@pytest.fixture
def labels(redis: fakeredis.FakeRedis) -> dict[str, set[str]]:
    """The labels of each metric, by its name without the prefix, as the page has it."""
    found = {definition.name: set(definition.labels) for definition in metrics.DEFINITIONS}
    redis.sadd("synapse:rooms", ":1:digits@1.0.0")
    for family in RedisMetrics(redis, Queues(redis, ["deploy"])).collect():
        name = family.name.removeprefix(f"{metrics.NAMESPACE}_")
        found[name] = {label for sample in family.samples for label in sample.labels}
    return found


def test_the_page_has_every_metric_with_its_labels(labels: dict[str, set[str]]) -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ?([a-z_`, ]*)\|", PAGE, re.MULTILINE)
    page = {
        name: set(re.findall(r"`(\w+)`", row[1])) for row in rows for name in re.findall(r"`(\w+)`", row[0])
    }

    assert page == labels


def test_rules_and_dashboard_use_metrics_that_exist(labels: dict[str, set[str]]) -> None:
    used = {name for text in expressions() for name in re.findall(r"synapse_worker_(\w+)", text)}

    assert {re.sub(r"_(count|bucket|sum)$", "", name) for name in used} <= labels.keys()


def test_the_page_says_what_to_do_at_each_alert() -> None:
    assert re.findall(r"^\| `(Synapse\w+)` \|", PAGE, re.MULTILINE) == [rule["alert"] for rule in alerts()]
