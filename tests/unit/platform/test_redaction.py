"""What is masked, what is left alone, and that a megabyte of nonsense takes no time."""

import gc
import json
import time
import timeit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.platform import (
    clean,
    redact,
    redact_event,
    register_secrets,
    register_settings,
    secret_registry,
)
from worker.platform.secret_registry import MASK, SecretRegistry

SECRET = 'pä/ss+w"ord & more'


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Token abc123secret",
        "authorization: Bearer abc123secret",
        "Proxy-Authorization: Basic abc123secret",
        "Authorization: abc123secret",
        'Authorization: Digest username="u", response="abc123secret"',
        "Synapse-Access-Token: Token abc123secret",
        "SYNAPSE-Agent: Token abc123secret",
        "{'Authorization': 'Token abc123secret'}",
        '{"synapse-access-token": "Token abc123secret"}',
        '{"body": "{\\"token\\": \\"abc123secret\\", \\"x\\": 1}"}',
        "[(b'authorization', b'Token abc123secret')]",
        "('authorization', 'Token with spaces abc123secret')",
        '{"headers": {"Authorization": ["Token abc123secret"], "token": ["abc123secret"]}}',
        "token=abc123secret",
        "token = abc123secret",
        "access_token=abc123secret&x=1",
        "GET /path?x=1&api_key=abc123secret",
        "password='two words abc123secret'",
        'password="quote \\" abc123secret"',
        "HF_TOKEN=abc123secret",
        "AWS_SECRET_ACCESS_KEY=abc123secret",
        '"token": "abc123secret"',
        "Invalid token: abc123secret",
        "api-key: abc123secret",
        "redis://user:abc123secret@host:6379/0",
        "redis://:p@ss-abc123secret@host:6379/0",
        "https://s3/x?X-Amz-Signature=abc123secret&y=1",
        "https://blob/x?sv=1&sig=abc123secret",
        "sent Bearer abc123secret.abc123secret",
        "password='never closed abc123secret",
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    redacted = redact(text)

    assert "abc123secret" not in redacted
    assert "***" in redacted


@pytest.mark.parametrize(
    "text",
    [
        "epoch 3: loss 0.2, token: 17, num_tokens=512",
        "tokenizer(pad_token='<pad>', eos_token='</s>')",
        "Token classification with max 128 tokens",
        "Authorization, please wait",
        "Missing authorization header",
        "see http://host:8000/path?page=2 for more",
        "Basic authentication required",
        "user@example.com wrote http://host/a@b",
        "the password has to be changed",
    ],
)
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_only_the_value_is_masked() -> None:
    line = 'call(url="http://h/p", token="abc", x=1) Authorization: Token t next words'

    assert redact(line) == 'call(url="http://h/p", token="***", x=1) Authorization: *** next words'


@pytest.mark.parametrize(
    "spelling",
    [
        SECRET,
        "p%C3%A4%2Fss%2Bw%22ord%20%26%20more",
        "p%c3%a4%2fss%2bw%22ord%20%26%20more",
        "p%C3%A4/ss%2Bw%22ord%20%26%20more",
        "p%C3%A4%2Fss%2Bw%22ord+%26+more",
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        "pä/ss+w&quot;ord &amp; more",
    ],
)
def test_a_registered_secret_is_masked_in_every_spelling(spelling: str) -> None:
    register_secrets([SECRET])

    assert redact(f"before {spelling} after") == "before *** after"


def test_a_secret_that_holds_another_is_masked_whole() -> None:
    register_secrets(["secret"])
    register_secrets(["secret-and-more"])

    assert redact("a secret-and-more b") == "a *** b"


def test_short_secrets_are_ignored() -> None:
    register_secrets(["dev", "", "  a  "])

    assert redact("a developer") == "a developer"


def test_clean_takes_urls_queries_codes_and_line_breaks_out() -> None:
    text = "\x1b[31mfailed\x1b[0m GET http://host:1/x?a=b\nfor /path?page=2&x=y\r\nand (postgres://u:p@h/db)"

    assert clean(text) == "failed GET <url> for /path and (<url>"


def test_a_secret_with_terminal_codes_in_it_is_cleaned() -> None:
    register_secrets(["supersecret"])

    assert clean("x super\x1b[1msecret y") == "x *** y"


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "\\",
        '"',
        "token",
        "token=",
        "token='",
        'token="\\',
        "authorization:",
        "authorization: digest ",
        "token: ",
        "://",
        "a://",
        "://a@",
        "?",
        "?a",
        "?a=",
        "Bearer a",
        "Bearer aaaaaaaaaaaaaaaa ",
        "\x1b[",
        "\x1b]",
        "x-amz-",
        "key\\\\\\\\'",
        " ",
        "a.",
    ],
)
def test_a_megabyte_of_nonsense_is_redacted_in_no_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    began = time.process_time()

    clean(text)

    assert time.process_time() - began < 3


def test_an_event_is_redacted_at_any_depth() -> None:
    register_secrets(["known-secret"])
    event = {
        "event": "x known-secret",
        "deep": {"list": ["known-secret", ("token=abc", 1)], "password": "hunter"},
        "number": 5,
        "nothing": None,
    }

    assert redact_event(None, "info", event) == {
        "event": "x ***",
        "deep": {"list": ["***", ("token=***", 1)], "password": "***"},
        "number": 5,
        "nothing": None,
    }


def test_an_exception_in_an_event_is_redacted() -> None:
    register_secrets(["known-secret"])
    try:
        raise ValueError("about known-secret")
    except ValueError as error:
        event = redact_event(None, "error", {"event": "failed", "exc_info": True, "error": error})

    assert "ValueError: about ***" in event["exception"]
    assert event["error"] == "ValueError: about ***"
    assert "exc_info" not in event


def test_an_object_whose_text_holds_a_secret_is_masked() -> None:
    register_secrets(["known-secret"])

    class Holder:
        def __repr__(self) -> str:
            return "Holder(known-secret)"

    assert redact_event(None, "info", {"a": Holder(), "b": b"known-secret"}) == {
        "a": "Holder(***)",
        "b": "b'***'",
    }


def test_an_event_that_contains_itself_is_survived() -> None:
    event: dict[str, object] = {"event": "x"}
    event["self"] = event

    assert redact_event(None, "info", event)["event"] == "x"


def test_an_event_without_an_exception_gets_none() -> None:
    assert redact_event(None, "info", {"event": "x", "exc_info": False}) == {"event": "x"}
    assert redact_event(None, "info", {"event": "x", "exc_info": True}) == {"event": "x"}


PIECES = st.lists(
    st.sampled_from(
        [
            "token",
            "=",
            ":",
            " ",
            '"',
            "'",
            "\\",
            "authorization",
            "Bearer ",
            "abc123",
            "http://",
            "@",
            "?",
            "&",
            "x",
            "\n",
        ]
    )
)


@settings(deadline=None, max_examples=50)
@given(PIECES)
def test_text_that_was_redacted_stays_as_it_is(pieces: list[str]) -> None:
    once = redact("".join(pieces))

    assert redact(once) == once


@settings(deadline=None, max_examples=50)
@given(PIECES)
def test_no_url_and_no_line_break_survives_cleaning(pieces: list[str]) -> None:
    cleaned = clean("".join(pieces))

    assert "http://" not in cleaned
    assert "\n" not in cleaned


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30), st.text(min_size=6, max_size=30), st.text(max_size=30))
def test_a_registered_secret_never_comes_through(before: str, secret: str, after: str) -> None:
    if len(secret.strip()) < 6 or set(secret) <= set("* "):
        return
    register_secrets([secret])

    assert secret.strip() not in redact(f"{before}{secret}{after}")


WORDS = st.text("abcdef-_=", min_size=6, max_size=24)


@given(
    st.lists(WORDS, max_size=8), st.lists(st.text("abcdef-_= ", max_size=30), max_size=4), st.integers(0, 5)
)
@settings(max_examples=300)
def test_a_secret_is_found_wherever_it_stands(secrets: list[str], texts: list[str], shift: int) -> None:
    # Given secrets of all lengths, of which some share beginnings, ends and pieces
    registry = SecretRegistry()
    registry.add(secrets)
    text = "x" * shift + "".join(f"{text}{secret}" for text, secret in zip(texts, secrets, strict=False))

    # Then the text is masked as by replacing one after the other, the longest first
    expected = text
    for secret in sorted({secret.strip() for secret in secrets}, key=len, reverse=True):
        expected = expected.replace(secret, MASK) if len(secret) >= 6 else expected
    assert registry.mask(text) == expected


@given(WORDS, st.lists(WORDS, max_size=4), st.integers(4, 23))
def test_the_beginning_of_a_secret_at_the_end_is_masked(secret: str, others: list[str], length: int) -> None:
    registry = SecretRegistry()
    registry.add([secret, *others])
    beginning = secret.strip()[: min(length, len(secret.strip()) - 1)]
    assert registry.mask_partial(f"<<< {beginning}").endswith(MASK)


def cost_of_a_line(secrets: int) -> float:
    """Seconds in which a line is masked, the least of many attempts."""
    registry = SecretRegistry()
    registry.add(
        f"{number * 7919:x}-token-of-agent-{number}" if number % 3 else f"{number:08x}"
        for number in range(secrets)
    )
    line = "epoch 12: loss 0.2317, accuracy 0.9134, 512 samples/s, eta 00:12:31 (batch 412 of 1875)"
    return min(timeit.repeat(lambda: registry.mask(line), number=100, repeat=30))


def test_a_line_costs_the_same_however_many_secrets_there_are() -> None:
    few = cost_of_a_line(10)
    assert min(cost_of_a_line(10_000) / few for _ in range(3)) <= 1.5


def test_secrets_that_are_no_longer_used_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process that remembers three secrets beside those of its settings
    monkeypatch.setattr(secret_registry, "MAX_SECRETS", 3)
    registry = SecretRegistry()
    registry.add(["of-the-settings"], hold=True)
    registry.add(["first-agent", "second-agent", "third-agent"])

    # When one of them is used again, and another one comes
    registry.add(["first-agent"])
    registry.add(["fourth-agent"])

    # Then the one that was not used for longest is forgotten
    text = "of-the-settings first-agent second-agent third-agent fourth-agent"
    assert registry.mask(text) == "*** *** second-agent *** ***"


def test_a_registry_keeps_nothing_of_dropped_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_registry, "MAX_SECRETS", 10)
    registry = SecretRegistry()
    registry.add(f"secret/number {number}" for number in range(1000))
    few = SecretRegistry()
    few.add(f"secret/number {number}" for number in range(990, 1000))
    assert registry._uses == few._uses
    assert len(registry._long._starts) + len(registry._short._starts) == len(few._uses)
    text = " ".join(f"secret/number {number}" for number in range(980, 1000))
    assert registry.mask(text).count(MASK) == 10


class Client:
    """An object that uses a secret."""


def test_the_secret_of_a_living_client_is_masked_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a client whose secret is older than all that a process remembers
    monkeypatch.setattr(secret_registry, "MAX_SECRETS", 1)
    client = Client()
    register_secrets(["secret-of-the-client"], owner=client)
    register_secrets(["of-another", "of-a-third"])
    assert redact("secret-of-the-client") == MASK

    # When it is gone, then its secret is one of those that are dropped
    del client
    gc.collect()
    assert redact("secret-of-the-client") == MASK
    register_secrets(["of-a-fourth"])
    assert redact("secret-of-the-client") == "secret-of-the-client"


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer abc123secret",
        "token  abc123secret",
        "Basic dXNlcjphYmMxMjNzZWNyZXQ=",
        "https://user:abc123secret@host/path",
        "amqp://user:abc123%73ecret@host//",
    ],
)
def test_a_secret_within_a_registered_text_is_masked(secret: str) -> None:
    register_secrets([secret])

    assert redact(f"all of it: {secret}") == f"all of it: {MASK}"
    assert redact("a part of it: abc123secret") == f"a part of it: {MASK}"


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_TOKEN"])
def test_a_password_in_a_setting_is_masked(name: str) -> None:
    register_settings({name: "postgres://plugin:pl4in-pass@db/1", "GREETING": "hello there"})

    assert redact("hello there, pl4in-pass") == f"hello there, {MASK}"


def test_words_of_a_pass_phrase_are_no_secrets() -> None:
    register_secrets(["correct horse battery staple"])

    assert redact("a battery and a staple") == "a battery and a staple"
