"""Events of a webhook are signed as Standard Webhooks has it, and a receiver believes no others."""

import base64

import pytest

from shared import webhooks
from shared.webhooks import WebhookVerificationError, signature_of, signing_keys, verify_event

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + base64.b64encode(b"another secret of 32 byte length").decode()
# The vector that the libraries of Standard Webhooks are tested with.
EVENT_ID, TIMESTAMP = "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330"
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks.time, "time", lambda: int(TIMESTAMP) + 60.0)


def headers(
    signature: str = SIGNATURE, event_id: str = EVENT_ID, timestamp: str = TIMESTAMP
) -> dict[str, str]:
    return {"Webhook-Id": event_id, "Webhook-Timestamp": timestamp, "Webhook-Signature": signature}


def test_signature_is_that_of_the_specifications_libraries() -> None:
    (key,) = signing_keys(SECRET)

    assert signature_of(key, EVENT_ID, TIMESTAMP, BODY) == SIGNATURE


def test_an_event_with_the_right_signature_is_read() -> None:
    assert verify_event(BODY, headers(), SECRET) == {"test": 2432232314}


def test_one_right_signature_of_several_is_enough() -> None:
    assert verify_event(BODY, headers(f"v1,{'A' * 43}= v1a,zzz {SIGNATURE}"), f"{OTHER_SECRET} {SECRET}")


@pytest.mark.parametrize(
    ("body", "changed", "secret"),
    [
        (BODY + b" ", {}, SECRET),
        (BODY, {"event_id": "msg_other"}, SECRET),
        (BODY, {"timestamp": str(int(TIMESTAMP) + 1)}, SECRET),
        (BODY, {"signature": SIGNATURE.replace("v1", "v2")}, SECRET),
        (BODY, {"signature": ""}, SECRET),
        (BODY, {"signature": "v1,größe"}, SECRET),
        (BODY, {}, OTHER_SECRET),
        (BODY, {"timestamp": "yesterday"}, SECRET),
    ],
)
def test_what_nobody_signed_is_not_believed(body: bytes, changed: dict[str, str], secret: str) -> None:
    with pytest.raises(WebhookVerificationError):
        verify_event(body, headers(**changed), secret)


@pytest.mark.parametrize("shift", [-301, 301])
def test_an_old_or_future_event_is_not_believed(shift: int) -> None:
    timestamp = str(int(TIMESTAMP) + 60 + shift)
    (key,) = signing_keys(SECRET)
    signature = signature_of(key, EVENT_ID, timestamp, BODY)

    with pytest.raises(WebhookVerificationError, match="timestamp"):
        verify_event(BODY, headers(signature, timestamp=timestamp), SECRET)


def test_an_event_without_its_headers_is_not_believed() -> None:
    with pytest.raises(WebhookVerificationError, match="header"):
        verify_event(BODY, {}, SECRET)


@pytest.mark.parametrize(
    "secret",
    [
        "hush-hush-hush",
        "whsec_hush-hush",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        f"{SECRET} MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ],
)
def test_a_wrong_secret_is_named_and_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and 24 to 64 random bytes") as caught:
        signing_keys(secret)

    assert secret.split()[-1] not in str(caught.value)
