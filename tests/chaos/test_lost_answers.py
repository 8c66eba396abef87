"""The dependency did what it was asked to, and the answer did not arrive: it is not done again."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.audit import Auditor
from tests.chaos.effect_log import Disturbances
from tests.chaos.platform_harness import PlatformHarness, Site

Only = Callable[[str, str], bool]


@contextlib.contextmanager
def _spoilt_site(harness: PlatformHarness, only: Only) -> Iterator[Site]:
    """A site whose first request of a kind is done without an answer; later ones are answered."""
    lost: list[str] = []

    def first(method: str, path: str) -> bool:
        if lost or not only(method, path):
            return False
        lost.append(path)
        return True

    behind = harness.site_behind("SYNAPSE_HOST", harness.sandbox.backend_url)
    with behind as (site, proxy), proxy.spoilt("lost", first):
        site.worker()
        yield site
        assert len(lost) == 1, "the fault was met"


@pytest.mark.timeout(60)
def test_a_lost_answer_to_a_dispatch_causes_no_second_dispatch(
    harness: PlatformHarness,
) -> None:
    with _spoilt_site(harness, lambda method, path: "/plugins/" in path) as site:
        # Given a run whose dispatch was taken, and whose answer was lost
        code = site.pre_processor()
        first = site.new_job("echo@1.0.0", "to_task")
        site.to_task_by_inference(first, site.project(2), code)
        expected = "Pre-processor deployment dispatch failed (ClientConnectionError)"
        assert site.end_of(first, 20)["result"] == {"error": expected}
        assert site.dispatches(code) == 1

        # When another run needs the same pre-processor (one that came before would share the failure)
        second, project = site.new_job("echo@1.0.0", "to_task"), site.project(2)
        site.to_task_by_inference(second, project, code)

        # Then it gets what the first one asked for
        assert site.end_of(second, 20)["status"] == "SUCCEEDED"
        auditor = site.auditor()
        auditor.dispatched_once(code)
        auditor.tasks(second, project)
        assert auditor.findings.wrong == []


@pytest.mark.timeout(60)
def test_a_lost_answer_to_a_registration_leaves_one_record(harness: PlatformHarness) -> None:
    with _spoilt_site(harness, lambda method, path: method == "POST" and "serve_app" in path) as site:
        assert _deployed(site).findings.wrong == []


@pytest.mark.timeout(60)
def test_a_lost_answer_to_the_end_leaves_one_end(harness: PlatformHarness) -> None:
    with _spoilt_site(harness, lambda method, path: method == "PATCH") as site:
        assert _deployed(site).findings.wrong == []


def _deployed(site: Site) -> Auditor:
    plugin = site.harness.plugin(site.harness.new_code())
    job = site.new_job(plugin, "deployment")
    disturbances = Disturbances()
    with disturbances.outage():
        site.deploy(job, plugin)
        site.end_of(job, 20)
    auditor = site.auditor(disturbances)
    auditor.succeeded(job)
    auditor.deployment(job)
    return auditor
