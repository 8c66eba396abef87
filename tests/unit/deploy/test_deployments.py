"""Which run may remove an application."""

import pytest

from tests.unit.deploy.deploy_harness import APP, DeployHarness
from worker.deploy.deployments import Ownership
from worker.runs.reporter import stop


@pytest.fixture
def ownership(harness: DeployHarness) -> Ownership:
    harness.accept("43")
    return Ownership(harness.services, APP)


def test_a_run_that_owns_nothing_may_not_remove_it(ownership: Ownership) -> None:
    assert not ownership.release("42")


def test_the_last_owner_may_remove_it_and_says_so_again(ownership: Ownership) -> None:
    ownership.acquire("42", existed=False)
    ownership.acquire("43", existed=False)
    assert not ownership.release("42")
    assert ownership.release("43")
    assert ownership.release("43")
    assert not ownership.existed_before()


def test_an_owner_whose_run_has_ended_does_not_count(ownership: Ownership, harness: DeployHarness) -> None:
    ownership.acquire("42", existed=False)
    ownership.acquire("43", existed=False)
    stop("42", harness.runs)
    assert ownership.release("43")


def test_an_application_that_ran_is_kept(ownership: Ownership) -> None:
    ownership.acquire("42", existed=False)
    assert not ownership.existed_before()
    ownership.mark_ran()
    assert ownership.existed_before()
