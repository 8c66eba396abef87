"""Which messages are tasks; what is kept of those that are not."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.message import Message

from worker.broker.rejections import RefusedMessage, keep, message_refused, refused_element, refused_message
from worker.broker.validation import NotATaskError, check

HEADERS: dict[str, Any] = {"task": "deploy", "id": "1"}
SIGNATURE: dict[str, Any] = {"task": "stop", "args": [], "kwargs": {}, "options": {}, "immutable": False}


def message(body: Any = None, *, content_type: str = "application/json", **headers: Any) -> Message:
    text = body if isinstance(body, str) else json.dumps([[], {}, {}] if body is None else body)
    return Message(
        body=text.encode(),
        headers={name: value for name, value in (HEADERS | headers).items() if value != "absent"},
        content_type=content_type,
        content_encoding="utf-8",
        accept={"application/json"},
    )


@pytest.mark.parametrize(
    "good",
    [
        message(),
        message([[1], {"a": None}, {"chain": None}]),
        message(eta="2030-01-01T00:00:00+00:00", expires="2030-01-01T00:00:00", retries=3),
        message(timelimit=[None, 3.5], stamped_headers=[], stamps={}),
        message(shadow="other", group="g", root_id="1", origin="me", ignore_result=True),
        message([[], {}, {"callbacks": [SIGNATURE], "errbacks": [], "chain": None, "chord": SIGNATURE}]),
        message({"task": "deploy", "id": "1", "args": [], "kwargs": {}}, task="absent", id="absent"),
        message({"task": "deploy", "id": "1"}, task="absent", id="absent"),
        message({"args": [], "kwargs": {}}),
    ],
)
def test_tasks(good: Message) -> None:
    check(good)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (message(task="absent"), "no header task"),
        (message(id="absent"), "no header id"),
        (message(id=5), "no header id"),
        (message(task=["x"]), "no header task"),
        (message("oops"), "not JSON"),
        (message("[" * 100_000), "not JSON"),
        (message([[], {}]), r"not \[args, kwargs, embed\]"),
        (message({"job": 7}), r"not \[args, kwargs, embed\]"),
        (message([None, {}, {}]), "args is not a list"),
        (message([[], [], {}]), "kwargs is not a dict"),
        (message([[], {}, None]), "embed is not a dict"),
        (message(content_type="application/x-python-serialize"), "content type"),
        (message(eta="soon"), "eta is not a time"),
        (message(eta=""), "eta is not a time"),
        (message(eta="0001-01-01T00:00:00+14:00"), "eta is not a time"),
        (message(expires=[]), "expires is not a time"),
        (message(retries="3"), "retries is not a count"),
        (message(timelimit=[1]), "timelimit"),
        (message(stamped_headers=["x"], stamps={}), "stamp"),
        (message(get=5), "name of something of Celery's own"),
        (message(_get_custom_headers="x"), "name of something of Celery's own"),
        (message({"task": "deploy", "id": "1", "update": 1}, task="absent"), "Celery's own"),
        (message(shadow=["x"]), "shadow is not a text"),
        (message([[], {}, {"get": 5}]), "embed has more"),
        (message([[], {}, {"chain": [5]}]), "chain is not made of tasks"),
        (message([[], {}, {"chain": "x"}]), "chain is not made of tasks"),
        (message([[], {}, {"callbacks": [{**SIGNATURE, "options": 5}]}]), "callbacks is not"),
        (message([[], {}, {"chord": [SIGNATURE]}]), "chord is not made of tasks"),
        (message(errbacks={"task": "x"}), "errbacks is not made of tasks"),
        (message(f'[[], {{"x": {"[" * 300}{"]" * 300}}}, {{}}]'), "nested too deeply"),
    ],
)
def test_no_tasks(bad: Message, reason: str) -> None:
    with pytest.raises(NotATaskError, match=reason):
        check(bad)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=10,
)
names = st.sampled_from(["task", "id", "eta", "expires", "retries", "timelimit", "stamps", "stamped_headers"])


@given(anything, st.dictionaries(names, anything))
def test_whatever_it_is_it_is_a_task_or_not(body: Any, headers: dict[str, Any]) -> None:
    try:
        check(message(body, **headers))
    except NotATaskError:
        return


def test_what_is_kept_of_a_message() -> None:
    body = [[], {"job": "7", "x": "é"}, {}]
    kept = refused_message(message(body), "why")
    assert kept == RefusedMessage("deploy", json.dumps(body), "why", "1", {"job": "7", "x": "é"})


def test_what_is_kept_of_an_element_that_is_no_message() -> None:
    body = base64.b64encode(json.dumps([[], {"job": 7}, {}]).encode()).decode()
    element = json.dumps({"headers": HEADERS, "body": body, "properties": None})
    kept = refused_element(element.encode(), "why")
    assert kept == RefusedMessage("deploy", element, "why", "1", {"job": 7})

    for raw in (b"no JSON", b"[1]", b"5", b"[" * 100_000):
        assert refused_element(raw, "why") == RefusedMessage("", raw.decode(), "why")
    binary = refused_element(b"\xff\x00", "why").body
    assert base64.b64decode(binary.removeprefix("base64:")) == b"\xff\x00"


def test_kept_only_when_every_receiver_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_refused, "receivers", [])
    refused = RefusedMessage("t", "b", "why")
    taken: list[RefusedMessage] = []

    def takes(refused: RefusedMessage, **_: Any) -> None:
        taken.append(refused)

    def fails(**_: Any) -> None:
        raise ConnectionError

    assert not keep(None, refused), "nobody is there"
    message_refused.connect(takes)
    assert keep(None, refused)
    message_refused.connect(fails)
    assert not keep(None, refused)
    assert taken == [refused, refused]
