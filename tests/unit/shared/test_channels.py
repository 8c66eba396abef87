"""The contract's keys and channels."""

import pytest

from shared.channels import dead_letters_key, events_channel, job_key, logs_channel, logs_history


@pytest.fixture(autouse=True)
def no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKER_REDIS_PREFIX", raising=False)


def names(prefix: str | None = None) -> list[str]:
    of_job = [named("42", prefix=prefix) for named in (job_key, events_channel, logs_channel, logs_history)]
    return [*of_job, dead_letters_key(prefix=prefix)]


def test_keys_are_the_contracts() -> None:
    assert names() == [
        "synapse:jobs:{42}",
        "synapse:jobs:{42}:events",
        "synapse:jobs:{42}:logs",
        "synapse:jobs:{42}:logs:history",
        "synapse:dead_letters",
    ]


def test_the_environment_names_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    contracts = names()
    monkeypatch.setenv("WORKER_REDIS_PREFIX", "staging")

    assert names() == [name.replace("synapse:", "staging:") for name in contracts]


def test_an_argument_precedes_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    contracts = names()
    monkeypatch.setenv("WORKER_REDIS_PREFIX", "staging")

    assert names("synapse") == contracts
