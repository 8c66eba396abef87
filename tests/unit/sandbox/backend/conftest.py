"""The job that has deployed an application."""

import pytest

from tests.unit.sandbox.backend.serve_applications import NAME
from worker.sandbox.backend.state import State


@pytest.fixture
def job(state: State) -> int:
    return int(state.add_job(action="deployment", plugin=NAME, agent=1))
