"""The events that a worker posts to a webhook when a run has ended: signed here, verified by a receiver.

The signatures are those of the Standard Webhooks specification, version 1.0.0, which has libraries for many
languages.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

from shared.messages import JsonObject

ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"
SECRET_PREFIX = "whsec_"  # noqa: S105 - begins every secret
SECRET_BYTES = range(24, 65)
MAX_AGE_SECONDS = 300.0
"""Older events may have been recorded by somebody and sent again."""


class WebhookVerificationError(ValueError):
    """The event was not sent by a worker with this secret, or too long ago; the message says which."""


def signing_keys(secrets: str) -> list[bytes]:
    """Decode secrets as the settings hold them.

    Args:
        secrets: One or, while they are exchanged, several separated by spaces: `whsec_` and 24 to 64 bytes in
            base64.

    Returns:
        The keys in the same order.

    Raises:
        ValueError: One of them is no such secret; the message does not show it.
    """
    keys = []
    for secret in secrets.split():
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not secret.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
            raise ValueError(f"must be {SECRET_PREFIX} and 24 to 64 random bytes in base64")
        keys.append(key)
    return keys


def signature_of(key: bytes, event_id: str, timestamp: str, body: bytes) -> str:
    """Sign an event.

    Args:
        key: One of `signing_keys`.
        event_id: The header `webhook-id`.
        timestamp: The header `webhook-timestamp`.
        body: The body as it is sent.

    Returns:
        One entry of the header `webhook-signature`.
    """
    signed = b".".join((event_id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def verify_event(body: bytes, headers: Mapping[str, str], secrets: str) -> JsonObject:
    """Read an event of which a worker with the same secret is the sender.

    An event may come again, after an answer that was lost: `webhook-id` is the same then.

    Args:
        body: The body as it was received, not parsed and serialized again.
        headers: The request's headers, whose names may have any case.
        secrets: The secret, or several separated by spaces.

    Returns:
        The event: `type`, `timestamp` and `data`.

    Raises:
        WebhookVerificationError: A header is missing, no signature is right, or the event is older or newer
            than five minutes.
        ValueError: The secret is none.
    """
    found = {name.lower(): value for name, value in headers.items()}
    try:
        event_id, timestamp, signatures = (
            found[name] for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER)
        )
        age = time.time() - int(timestamp)
    except (KeyError, ValueError):
        raise WebhookVerificationError("a header is missing or malformed") from None
    if abs(age) > MAX_AGE_SECONDS:
        raise WebhookVerificationError("the timestamp is too old, or in the future")
    expected = [signature_of(key, event_id, timestamp, body).encode() for key in signing_keys(secrets)]
    given = [each.encode() for each in signatures.split()]
    if not any(hmac.compare_digest(mine, each) for mine in expected for each in given):
        raise WebhookVerificationError("no signature is right")
    event: JsonObject = json.loads(body)
    return event
