"""Settings of the broker, its URLs, and the check of the clock."""

import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.broker import ClockOffsetError, Connection, broker_settings, broker_url, check_clock
from worker.broker.transport import Transport


def settings(url: str) -> Any:
    return SimpleNamespace(broker_url=url, worker_visibility_timeout_seconds=60)


def test_redis_settings_follow_the_visibility_timeout() -> None:
    options = broker_settings(settings("redis://h:1/0"))["broker_transport_options"]
    assert options["visibility_timeout"] == 60
    assert options["unacked_restore_interval"] == options["unacked_restore_throttle"] == 1
    assert broker_settings(settings("rediss://h:1/0"))["broker_use_ssl"] == {
        "ssl_cert_reqs": ssl.CERT_REQUIRED
    }


def test_socket_url_is_written_as_kombu_reads_it(tmp_path: Path) -> None:
    assert broker_url("redis://h:1/0") == "redis://h:1/0"
    url = broker_url(f"unix://{tmp_path}/redis.sock?db=3")
    assert url == broker_url(url) == f"redis+socket://{tmp_path}/redis.sock?virtual_host=3"
    assert Connection(url).get_transport_cls() is Transport


@pytest.mark.parametrize(("ahead", "warned"), [(0.0, False), (0.4, False), (-0.8, True), (3.0, True)])
def test_clock_that_is_a_little_off_logs_a_warning(
    ahead: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    off = check_clock(lambda: (1_000, 0), clock=lambda: 1_000 + ahead)
    assert off == pytest.approx(ahead)
    assert ("clock differs" in capsys.readouterr().out) is warned


@pytest.mark.parametrize(("ahead", "words"), [(6.0, "6.0 s ahead of"), (-90.5, "90.5 s behind")])
def test_clock_that_is_far_off_is_an_error(ahead: float, words: str) -> None:
    with pytest.raises(ClockOffsetError, match=words):
        check_clock(lambda: (1_000, 0), clock=lambda: 1_000 + ahead)


def test_slow_answer_counts_as_no_offset() -> None:
    moments = iter([1_000.0, 1_009.0])
    assert check_clock(lambda: (1_004, 0), clock=lambda: next(moments)) == 0
