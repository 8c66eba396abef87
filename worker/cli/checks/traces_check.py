"""Whether the receiver of traces takes spans."""

import logging
import ssl
from typing import Any

from worker import tracing


def check_receiver(target: tracing.Target, seconds: float) -> str | None:
    """What is wrong with the receiver: the exporter sends it no spans, once. None when it takes them."""
    problem: str | None = "it does not answer (OTLP over HTTP has usually port 4318; 4317 is that of gRPC)"

    class OneAttempt:
        """The exporter's session, whose error is followed by no further attempt."""

        verify: bool | str = True
        cert: Any = None

        def request(self, method: str, url: str, headers: Any, data: bytes, **_: Any) -> None:
            import httpx

            nonlocal problem
            tls = ssl.create_default_context(cafile=self.verify if isinstance(self.verify, str) else None)
            if self.cert:
                tls.load_cert_chain(*([self.cert] if isinstance(self.cert, str) else self.cert))
            answer = httpx.request(method, url, headers=headers, content=data, verify=tls, timeout=seconds)
            status = answer.status_code
            problem = None if 200 <= status < 300 else f"it answers {status}"
            raise InterruptedError

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    tracing.make_exporter(target, OneAttempt()).export([])
    return problem
