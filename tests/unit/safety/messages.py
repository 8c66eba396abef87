"""Messages as a careless or hostile publisher sends them: anything that JSON can say."""

import json
from typing import Any

from hypothesis import strategies as st

# With halves of surrogate pairs, which JSON can carry, and with what somebody may format or print.
TRICKS = [
    "{}", "{job}", "%s", "%(job)s", "[/red]", "\x1b[2J", "\x00", "\ud800", "\udfff\ud800", "‮", "😀" * 50,
    "../../x", "..", ".", "a/b", "42\n", " 42", "٤٢", "0x2A", "1e3", "NaN", "null", "None", "true", "",
    "self", "args", "kwargs", "__proto__", "digits@1.0.0", "digits@9", "@", "x" * 20_000,
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(TRICKS), st.text(st.characters(), max_size=30))
NUMBERS = st.one_of(
    st.integers(-10, 100),
    st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**64, 10**300, 0.5, 1e308, float("inf"), float("nan")]),
    st.integers(1, 99).map(str),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def nested(depth: int) -> Any:
    return json.loads('{"a":[' * (depth // 2) + "1" + "]}" * (depth // 2))


HUGE = st.sampled_from(
    [
        nested(40), nested(90), "z" * 300_000, {f"key{n}": n for n in range(5_000)}, [0] * 50_000,
        {"k" * 70_000: "v"}, [[[]] * 300] * 30,
    ]
)  # fmt: skip
ANYTHING = st.one_of(VALUES, HUGE)

PARAMS = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.one_of(st.just("a name"), ANYTHING),
            "project": st.one_of(st.just(1), ANYTHING),
            "agent": st.one_of(st.just(1), ANYTHING),
            "task_filters": ANYTHING,
            "method": st.one_of(st.sampled_from(["file", "inference"]), ANYTHING),
            "target_specification_name": st.one_of(st.just("label_1"), ANYTHING),
            "pre_processor": ANYTHING,
            "model": ANYTHING,
            "batch_size": ANYTHING,
            "schema": ANYTHING,
            "num_cpus": ANYTHING,
            "num_replicas": ANYTHING,
            "memory": ANYTHING,
        },
    ),
    ANYTHING,
)


HEADERS = [
    "lang", "id", "shadow", "group", "group_index", "retries", "timelimit", "root_id", "parent_id", "stamps",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "chain",
    "compression", "get", "_get_custom_headers", "__dict__", "__class__", "children", "chord", "callbacks",
    "errbacks", "reply_to", "utc", "is_eager", "called_directly", "delivery_info", "headers", "hostname",
]  # fmt: skip
"""Those of Celery's protocol, and names of what its request has of its own."""


def spoilt_headers() -> st.SearchStrategy[dict[str, Any]]:
    """Headers to put into a good message."""
    return st.dictionaries(st.sampled_from(HEADERS) | TEXTS, ANYTHING, min_size=1, max_size=3)


def step_arguments(jobs: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The arguments by name of an internal step, some of them right."""
    count = st.one_of(st.integers(0, 3), ANYTHING)
    return st.fixed_dictionaries(
        {},
        optional={
            "job": jobs,
            "room": st.one_of(st.just(":1:nothing@1.0.0"), ANYTHING),
            "chunk": count,
            "generation": count,
            "attempt": count,
            "redelivered": st.one_of(st.booleans(), ANYTHING),
            "reason": ANYTHING,
            "tenant": st.one_of(st.none(), ANYTHING),
        },
    )


def messages(jobs: st.SearchStrategy[Any], plugin: str) -> st.SearchStrategy[dict[str, Any]]:
    """The arguments by name of a `deploy`, `to_task`, `tail_logs` or `stop`."""
    known = st.fixed_dictionaries(
        {},
        optional={
            "job": jobs,
            "plugin": st.one_of(st.just(plugin), ANYTHING),
            "agent": st.one_of(st.just(1), ANYTHING),
            "params": PARAMS,
            "action": st.one_of(st.sampled_from(["deployment", "to_task"]), ANYTHING),
            "language": ANYTHING,
            "tenant": ANYTHING,
            "ray_job": ANYTHING,
            "protocol": ANYTHING,
        },
    )
    return st.one_of(known, known, st.dictionaries(TEXTS, ANYTHING, max_size=3))
