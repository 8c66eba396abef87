"""Posts signed events to the webhook."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import httpx

from shared.webhooks import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, signature_of
from worker import metrics
from worker.platform import BaseClient, ClientError
from worker.platform.deadlines import deadline
from worker.platform.responses import HttpResponse, response_error
from worker.platform.transport import MAX_ERROR_BYTES, transport_error

TIMEOUT = {"connect": 5.0, "read": 15.0, "total": 20.0}
"""Seconds of one attempt."""


class WebhookClient(BaseClient):
    """Posts events to one URL, over kept connections; threads may share it. It follows no redirect."""

    service = "webhook"

    def __init__(
        self, url: str, signing_keys: Sequence[bytes], transport: httpx.BaseTransport | None = None
    ) -> None:
        """`url`: as it is, also with a query; no error shows it. Each of the keys signs every event."""
        super().__init__(str(httpx.URL(url).copy_with(raw_path=b"/")), TIMEOUT, transport=transport)
        self._url = url
        self._signing_keys = tuple(signing_keys)

    def post(self, event_id: str, body: bytes) -> None:
        """Send an event once; raises `ClientError` for any answer but 2xx. A repetition has the same id."""
        timestamp = str(int(time.time()))
        signatures = [signature_of(key, event_id, timestamp, body) for key in self._signing_keys]
        headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            ID_HEADER: event_id,
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: " ".join(signatures),
        }
        answer = self._exchange_event(headers, body)
        if not 200 <= answer.status < 300:
            raise response_error(answer, len(body))

    def post_test(self) -> None:
        """Send an event of the type `test`; raises as `post` does."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        event = {"type": "test", "timestamp": now, "data": {}}
        self.post(f"test_{uuid4().hex}", json.dumps(event, separators=(",", ":")).encode())

    def _exchange_event(self, headers: dict[str, str], body: bytes) -> HttpResponse:
        began, answer = time.monotonic(), None
        failure: Exception | None = None
        try:
            with (
                deadline(self._timeouts.total),
                self._http.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                received = b""
                answer = HttpResponse(response.status_code, response.headers, received)
                for chunk in response.iter_raw():
                    received += chunk
                    if len(received) >= MAX_ERROR_BYTES:
                        break
                answer = HttpResponse(response.status_code, response.headers, received[:MAX_ERROR_BYTES])
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            failure = error
        metrics.observe_request(self.service, "POST", answer.status if answer else 0, began)
        # The status says whether the receiver has the event, also where the rest of its answer is lost.
        if answer is None and failure is not None:
            raise transport_error(failure)
        assert answer is not None
        return answer


def is_rejected(error: ClientError) -> bool:
    """Whether the receiver rejects the event for good: a 4xx that asks for no other attempt."""
    return 400 <= error.status_code < 500 and error.status_code not in (408, 409, 425, 429)
