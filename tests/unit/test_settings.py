"""The environment: defaults of the contract, mistakes of one clear line, secrets that stay secret."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.broker import broker_url
from worker.per_process import RecentlyUsed, once_per_instance, once_per_process
from worker.settings import MB, Settings, SettingsError, load_settings, trace_mistakes, unknown_variables

SECRET = "hush-hush-hush"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SYNAPSE_HOST", "https://backend.example/api/")
    monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", SECRET)
    monkeypatch.setenv("PLUGINS_DIR", str(tmp_path))


def mistakes() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value).splitlines()


def test_defaults_are_the_contracts() -> None:
    settings = load_settings()

    assert {
        "REDIS_URL": settings.redis_url,
        "CELERY_BROKER_URL": settings.broker_url,
        "WORKER_PLUGIN_HOST": settings.worker_plugin_host,
        "WORKER_PLUGIN_TIMEOUT_SECONDS": settings.worker_plugin_timeout_seconds,
        "WORKER_PLUGIN_MAX_FAILURES_IN_ROW": settings.worker_plugin_max_failures_in_row,
        "WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS": settings.worker_pre_processor_timeout_seconds,
        "WORKER_PRE_PROCESSOR_POLL_SECONDS": settings.worker_pre_processor_poll_seconds,
        "WORKER_DEPLOY_TIMEOUT_SECONDS": settings.worker_deploy_timeout_seconds,
        "WORKER_ANNOTATE_CONCURRENCY": settings.worker_annotate_concurrency,
        "WORKER_ANNOTATE_CHUNK": settings.worker_annotate_chunk,
        "WORKER_VISIBILITY_TIMEOUT_SECONDS": settings.worker_visibility_timeout_seconds,
        "messages": settings.worker_stream_max_messages,
        "lines": settings.worker_stream_max_lines,
        "bytes": settings.worker_stream_max_bytes,
        "bytes a line": settings.worker_stream_max_message_bytes,
        "queued": settings.worker_stream_queue,
        "WORKER_REDIS_PREFIX": settings.worker_redis_prefix,
    } == {
        "REDIS_URL": "redis://127.0.0.1:6379/0",
        "CELERY_BROKER_URL": "redis://127.0.0.1:6379/0",
        "WORKER_PLUGIN_HOST": "ray",
        "WORKER_PLUGIN_TIMEOUT_SECONDS": 300,
        "WORKER_PLUGIN_MAX_FAILURES_IN_ROW": 10,
        "WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS": 180,
        "WORKER_PRE_PROCESSOR_POLL_SECONDS": 10,
        "WORKER_DEPLOY_TIMEOUT_SECONDS": 600,
        "WORKER_ANNOTATE_CONCURRENCY": 64,
        "WORKER_ANNOTATE_CHUNK": 100,
        "WORKER_VISIBILITY_TIMEOUT_SECONDS": 60,
        "messages": 10_000,
        "lines": 50_000,
        "bytes": 50 * MB,
        "bytes a line": 10 * 1024,
        "queued": 1_000,
        "WORKER_REDIS_PREFIX": "synapse",
    }


@pytest.mark.parametrize(
    "name",
    [
        "synapse_tenant",
        "synapse_agent_url",
        "synapse_agent_token",
        "ray_address",
        "worker_agent",
        "worker_plugin_access_token",
        "worker_package_store",
        "worker_webhook_url",
        "worker_webhook_secret",
        "worker_tenant_chunks",
        "worker_tenant_runs",
    ],
)
def test_optional_settings_are_none(name: str) -> None:
    assert getattr(load_settings(), name) is None


@pytest.mark.parametrize("name", ["SYNAPSE_HOST", "SYNAPSE_ACCESS_TOKEN", "PLUGINS_DIR"])
@pytest.mark.parametrize("value", [None, ""])
def test_missing_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)

    (line,) = mistakes()
    assert line.startswith(f"{name} is not set: ")


def test_every_mistake_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNAPSE_HOST")
    monkeypatch.setenv("REDIS_URL", "http://x")
    monkeypatch.setenv("WORKER_ANNOTATE_CHUNK", "many")

    assert [line.split()[0] for line in mistakes()] == ["SYNAPSE_HOST", "REDIS_URL", "WORKER_ANNOTATE_CHUNK"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SYNAPSE_HOST", "backend.example"),
        ("SYNAPSE_HOST", "https://"),
        ("SYNAPSE_HOST", "https://[::1"),
        ("SYNAPSE_HOST", "https://x:port"),
        ("SYNAPSE_HOST", "https://user:password@backend.example"),
        ("SYNAPSE_AGENT_URL", "https://agent.example/?token=x"),
        ("SYNAPSE_HOST", "http://back end.example"),
        ("SYNAPSE_HOST", "http://back\u200bend.example"),
        ("SYNAPSE_AGENT_URL", "http://agent/a b"),
        ("SYNAPSE_TENANT", "größe"),
        ("SYNAPSE_TENANT", "two\nlines"),
        ("RAY_ADDRESS", "auto"),
        ("RAY_ADDRESS", "ray-head"),
        ("RAY_ADDRESS", "ray://ray-head"),
        ("RAY_ADDRESS", "http://ray-head:10001"),
        ("RAY_ADDRESS", "ray-head:99999"),
        ("SYNAPSE_ACCESS_TOKEN", "   "),
        ("SYNAPSE_ACCESS_TOKEN", "two\nlines"),
        ("SYNAPSE_AGENT_URL", "ws://agent"),
        ("REDIS_URL", "amqp://x"),
        ("REDIS_URL", "redis://[x"),
        ("REDIS_URL", "redis://r/0?socket_timeout=soon"),
        ("REDIS_URL", "redis://r/0?max_connections=3"),
        ("CELERY_BROKER_URL", "redis://r/0?max_connections=3"),
        ("CELERY_BROKER_URL", "sentinel://r:26379/0"),
        ("REDIS_URL", "sentinel://r:26379/0"),
        ("REDIS_URL", "sentinel://r:26379;redis://s:26379/0?master_name=m"),
        ("REDIS_URL", "redis://r/0?socket_timout=3"),
        ("CELERY_BROKER_URL", "rabbit"),
        ("CELERY_BROKER_URL", "redis://r/0;redis://s/0"),
        ("PLUGINS_DIR", "/no/such/folder"),
        ("WORKER_PLUGIN_HOST", "docker"),
        ("WORKER_PLUGIN_TIMEOUT_SECONDS", "0"),
        ("WORKER_PLUGIN_TIMEOUT_SECONDS", "inf"),
        ("WORKER_PLUGIN_MAX_FAILURES_IN_ROW", "0"),
        ("WORKER_VISIBILITY_TIMEOUT_SECONDS", "9.9"),
        ("WORKER_VISIBILITY_TIMEOUT_SECONDS", "nan"),
        ("WORKER_VISIBILITY_TIMEOUT_SECONDS", "inf"),
        ("WORKER_ANNOTATE_CONCURRENCY", "0"),
        ("WORKER_ANNOTATE_CHUNK", "-1"),
        ("WORKER_AGENT", "first"),
        ("WORKER_AGENT", "0"),
        ("WORKER_REDIS_PREFIX", "two words"),
        ("WORKER_REDIS_PREFIX", "{tag}"),
        ("WORKER_STREAM_MAX_LINES", "1.5"),
        ("WORKER_TENANT_CHUNKS", "0"),
        ("WORKER_TENANT_RUNS", "many"),
        ("WORKER_WEBHOOK_URL", "receiver.example/hook"),
        ("WORKER_WEBHOOK_URL", "https://user:password@receiver.example/hook"),
        ("WORKER_WEBHOOK_URL", "https://receiver.example/hook?x=a b"),
        ("WORKER_WEBHOOK_URL", "https://receiver.example/#hook"),
        ("WORKER_WEBHOOK_SECRET", "too-simple"),
        ("WORKER_WEBHOOK_SECRET", " "),
    ],
)
def test_mistake_is_one_line_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    (line,) = mistakes()
    assert line.startswith(f"{name} ")


@pytest.mark.parametrize(("name", "value"), [("PLUGINS_DIR", "/no/such"), ("WORKER_PLUGIN_HOST", "docker")])
def test_mistake_shows_a_value_that_is_no_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    assert mistakes()[0].endswith(f", not {value!r}")


WEBHOOK_SECRETS = ["whsec_" + "YWFh" * 8, "whsec_" + "YmJi" * 8]


def test_the_url_of_a_webhook_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_WEBHOOK_URL", " https://receiver.example/hook/?key=x\n")
    monkeypatch.setenv("WORKER_WEBHOOK_SECRET", WEBHOOK_SECRETS[0])

    assert load_settings().worker_webhook_url == "https://receiver.example/hook/?key=x"


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORKER_WEBHOOK_URL", "https://receiver.example"), ("WORKER_WEBHOOK_SECRET", WEBHOOK_SECRETS[0])],
)
def test_a_webhook_needs_url_and_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    assert mistakes() == ["of WORKER_WEBHOOK_URL and WORKER_WEBHOOK_SECRET only one is set"]


def test_both_secrets_of_a_webhook_sign_and_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_WEBHOOK_URL", "https://receiver.example")
    monkeypatch.setenv("WORKER_WEBHOOK_SECRET", " ".join(WEBHOOK_SECRETS))

    settings = load_settings()

    assert settings.webhook_signing_keys == [b"a" * 24, b"b" * 24]
    assert set(WEBHOOK_SECRETS) <= set(settings.secrets())
    assert {each.removeprefix("whsec_") for each in WEBHOOK_SECRETS} <= set(settings.secrets())
    assert WEBHOOK_SECRETS[0] not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hush-hush@collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT_FILE", "/no/such/file"),
        ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "/no/such/file"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hush-hush\nx"),
    ],
)
def test_a_wrong_variable_of_opentelemetry_stops_no_worker(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    settings = load_settings()

    assert (settings.otel_exporter_otlp_endpoint, settings.otel_exporter_otlp_headers) == (None, None)
    (line,) = trace_mistakes()
    assert line.startswith(f"{name.removesuffix('_FILE')} ")
    assert "http://collector:4318" in line
    assert "hush-hush" not in line


def test_right_variables_of_opentelemetry_are_no_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace_mistakes() == []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert trace_mistakes() == []
    assert load_settings().otel_exporter_otlp_endpoint == "http://collector:4318"


def test_unknown_variables_suggest_the_setting_meant() -> None:
    environ = {"WORKER_TYPO": "1", "WORKER_PLUGINS_HOST": "ray", "WORKER_AGENT": "1", "PATH": "/bin"}

    assert unknown_variables(environ) == {"WORKER_PLUGINS_HOST": "WORKER_PLUGIN_HOST", "WORKER_TYPO": None}


@pytest.mark.parametrize("name", ["SYNAPSE_AGENT_URL", "REDIS_URL", "CELERY_BROKER_URL", "SYNAPSE_HOST"])
def test_mistake_does_not_show_the_value(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, f"ftp://user:{SECRET}@host")

    assert SECRET not in "\n".join(mistakes())


@pytest.mark.parametrize("name", ["SYNAPSE_ACCESS_TOKEN", "SYNAPSE_HOST", "PLUGINS_DIR", "REDIS_URL"])
def test_quotes_of_an_environment_file_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, '"http://hush"')

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert f"{name} begins and ends with a quotation mark, a part of its value" in str(caught.value)


def test_white_space_around_a_url_of_redis_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", " redis://redis:6379/1\n")

    assert load_settings().redis_url == "redis://redis:6379/1"


def test_visibility_timeout_of_ten_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_VISIBILITY_TIMEOUT_SECONDS", "10")

    assert load_settings().worker_visibility_timeout_seconds == 10


def test_token_of_an_agent_without_its_url_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAPSE_AGENT_TOKEN", SECRET)

    (line,) = mistakes()
    assert "SYNAPSE_AGENT_URL" in line
    assert SECRET not in line


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {
        "SYNAPSE_HOST": "https://backend.example",
        "SYNAPSE_AGENT_URL": "https://agent.example",
        "SYNAPSE_AGENT_TOKEN": "agent-secret",
        "WORKER_PLUGIN_ACCESS_TOKEN": "plugin-secret",
        "REDIS_URL": "redis://:redis%2Dsecret@redis:6379/0",
        "CELERY_BROKER_URL": "amqp://user:broker-secret@rabbit//",
    }.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_secrets_are_known_for_masking(full: Settings) -> None:
    assert set(full.secrets()) == {
        SECRET,
        "agent-secret",
        "plugin-secret",
        "redis-secret",
        "broker-secret",
    }


@pytest.mark.parametrize("show", [repr, str])
def test_settings_shown_show_no_secret(full: Settings, show: object) -> None:
    assert callable(show)
    shown = show(full)

    assert "secret" not in shown
    assert SECRET not in shown


def test_line_break_after_a_mounted_secret_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", f"{SECRET}\n")

    assert load_settings().synapse_access_token.get_secret_value() == SECRET


def test_line_break_after_a_mounted_tenant_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAPSE_TENANT", "acme\n")

    assert load_settings().synapse_tenant == "acme"


def test_host_has_no_slash_at_its_end() -> None:
    assert load_settings().synapse_host == "https://backend.example/api"


def test_broker_is_redis_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "rediss://r:1/2")
    assert load_settings().broker_url == "rediss://r:1/2"

    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://q")
    assert load_settings().broker_url == "amqp://q"


def test_broker_on_a_socket_gets_celerys_name_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "unix:///run/redis.sock")

    assert broker_url(load_settings().broker_url) == "redis+socket:///run/redis.sock?virtual_host=0"


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_what_threads_need_at_once_is_made_once() -> None:
    made: list[int] = []
    together = threading.Barrier(8)

    @once_per_process
    def make() -> int:
        made.append(1)
        threading.Event().wait(0.05)  # the other threads come in meanwhile
        return len(made)

    def use() -> int:
        together.wait(5)
        return make()

    with ThreadPoolExecutor(8) as pool:
        results = [future.result() for future in [pool.submit(use) for _ in range(8)]]

    assert (results, made) == ([1] * 8, [1])


def test_what_is_once_per_instance_is_made_once_by_threads() -> None:
    class Owner:
        made = 0

        @once_per_instance
        def part(self) -> object:
            Owner.made += 1
            threading.Event().wait(0.05)  # the other threads come in meanwhile
            return object()

    owner, together = Owner(), threading.Barrier(8)

    def use() -> object:
        together.wait(5)
        return owner.part

    with ThreadPoolExecutor(8) as pool:
        parts = {future.result() for future in [pool.submit(use) for _ in range(8)]}

    assert (len(parts), Owner.made) == (1, 1)
    assert Owner().part not in parts


def test_what_was_used_last_is_kept() -> None:
    # Given two values, the first of which was used after the second
    kept = RecentlyUsed[str, int](most=2)
    kept["a"], kept["b"] = 1, 2
    assert kept.get("a") == 1

    # When there is another one, then the second goes
    kept["c"] = 3
    assert (kept.get("a"), kept.get("b"), kept.get("c"), len(kept)) == (1, None, 3, 2)


def test_a_store_that_is_a_link_stays_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given a link that will be swapped while the worker runs
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    monkeypatch.setenv("PLUGINS_DIR", str(tmp_path / "link"))

    # Then the worker keeps the link and not where it leads
    assert load_settings().plugins_dir == tmp_path / "link"
