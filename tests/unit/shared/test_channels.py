"""The contract's keys and channels."""

from shared.channels import DEAD_LETTERS, events_channel, job_key, logs_channel, logs_history


def test_keys_are_the_contracts() -> None:
    assert [job_key("42"), events_channel("42"), logs_channel("42"), logs_history("42"), DEAD_LETTERS] == [
        "synapse:jobs:{42}",
        "synapse:jobs:{42}:events",
        "synapse:jobs:{42}:logs",
        "synapse:jobs:{42}:logs:history",
        "synapse:dead_letters",
    ]
