"""How a plugin author uses `worker.actions` and `worker.platform`; like `backend_service.py`, never run."""

from collections.abc import Generator, Mapping
from typing import Any, assert_type

from pydantic import BaseModel

from shared import DeployParams
from worker.actions import (
    BaseAction,
    BaseDeploymentAction,
    BaseServeDeployment,
    DeploymentProgressCategories,
    RuntimeContext,
    ToTaskAction,
    ToTaskMethod,
    ToTaskParams,
    ToTaskResult,
)
from worker.platform import (
    AgentClient,
    AsyncBackendClient,
    AsyncLogTail,
    AuthenticationError,
    AuthorizationError,
    BackendClient,
    BaseClient,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    RayClientMixin,
    RetryPolicy,
    ServerError,
    StreamError,
    StreamLimitExceededError,
    StreamLimits,
    ValidationError,
    WebSocketError,
    clean,
    error_type,
    redact,
)
from worker.pre_processor import classify_serve_app


class Shout(BaseServeDeployment):
    """A model behind Ray Serve."""

    max_models = 1
    serve_deadline_s = 4.0

    def __init__(self, backend_url: str) -> None:
        super().__init__(backend_url)
        self.calls = 0

    async def _get_model(self, model_info: dict[str, Any]) -> type[str]:
        assert_type(self.backend_url, str)
        return str

    async def infer(self, data: dict[str, Any]) -> dict[str, str]:
        model = await self.get_model()
        return {"shouted": model(data["text"]).upper()}

    async def infer_batch(self, requests: list[Any]) -> list[Any]:
        return [await self.infer(request) for request in requests]


class PlainFunction(BaseServeDeployment):
    """`infer` may be plain, too; the checker objects, because the base class declares it `async`."""

    def infer(self, data: dict[str, Any]) -> dict[str, str]:  # type: ignore[override]
        return {"shouted": data["text"]}


class ShoutParams(DeployParams):
    """Parameters of the author's own, beside the message's."""

    volume: int = 11


class Deployment(BaseDeploymentAction[ShoutParams]):
    """Puts the model online, with its own name, route and resources."""

    entrypoint = Shout

    def get_serve_app_name(self) -> str:
        assert_type(self.ctx, RuntimeContext)
        assert_type(self.ctx.env.get_str("SYNAPSE_PLUGIN_RELEASE_CODE"), str)
        return f"{super().get_serve_app_name()}-shout"

    def get_route_prefix(self) -> str:
        return "/shout"

    def get_ray_actor_options(self) -> dict[str, Any]:
        return {**super().get_ray_actor_options(), "num_cpus": 0.5}

    def get_serve_options(self) -> dict[str, Any]:
        return {**super().get_serve_options(), "max_ongoing_requests": 8}

    def get_runtime_env(self) -> dict[str, Any]:
        return {"env_vars": {"OMP_NUM_THREADS": "1"}}


class UntypedDeployment(BaseDeploymentAction):
    """The model of the parameters may be left out, then it is the message's."""

    entrypoint = PlainFunction


class ToTask(ToTaskAction[ToTaskParams]):
    """All three hooks, with every argument."""

    concurrency = 4

    def convert_data_from_file(
        self,
        primary_file_url: str,
        primary_file_name: str | None,
        data_file_url: str,
        data_file_name: str | None,
        task_data: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        self.ctx.log_message(f"reads {data_file_name}")
        self.ctx.set_progress(1, 2, step="read")
        self.ctx.set_metrics({"files": 1.0})
        return {"caption": data_file_name}

    def setup_inference_params(
        self,
        primary_file_url: str,
        primary_file_name: str | None,
        data_files: list[dict[str, Any]],
        *,
        model_id: int | None = None,
        pre_processor_params: dict[str, Any] | None = None,
        pre_processor_config: dict[str, Any] | None = None,
        task_data: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {"model": model_id, "method": "post", "json": {"text": primary_file_name}}

    def convert_data_from_inference(
        self, inference_data: Any, task_data: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"caption": inference_data["shouted"]}


class Untyped(ToTaskAction):
    """As the README writes it: without a model, and with hooks that take only what they use."""

    def setup_inference_params(self, primary_file_url, primary_file_name, data_files, *, model_id=None, **_):  # type: ignore[no-untyped-def]
        return {"model": model_id, "method": "post", "json": {"text": primary_file_name}}


def try_out(params: ShoutParams, ctx: RuntimeContext) -> None:
    """In a plain process: with a model, with a mapping, with the environment's context or one's own."""
    deployment = Deployment(params, ctx)
    assert_type(deployment.deploy(), None)
    assert_type(deployment.execute(), dict[str, Any])
    assert_type(deployment.plan(), dict[str, Any])
    assert_type(deployment.submit(deployment.plan()), dict[str, Any])
    assert_type(deployment.register_serve_application(), int | str | None)
    assert_type(deployment.progress, DeploymentProgressCategories)
    assert_type(deployment.progress.DEPLOY, str)
    Deployment({"num_cpus": 1, "volume": 3})
    Deployment()

    to_task = ToTask({"name": "x", "project": 1, "agent": 1, "target_specification_name": "label"})
    result = to_task.execute()
    assert_type(result, ToTaskResult)
    assert_type(ToTaskMethod("file"), ToTaskMethod)
    RuntimeContext(
        env={"SYNAPSE_HOST": "https://backend.example"}, job_id="42", client=None, agent_client=None
    )
    assert_type(RuntimeContext.from_environ(), RuntimeContext)


def call_the_backend(timeout: Mapping[str, float]) -> None:
    """The calls of `ctx.client`."""
    with BackendClient("https://backend.example", "token", tenant="acme", timeout=timeout) as client:
        assert_type(client, BackendClient)
        assert_type(client.get_project(7), dict[str, Any])
        assert_type(client.get_task("12"), dict[str, Any])
        assert_type(client.list_tasks({"status": "todo"}, 7, page_size=50), dict[str, Any])
        assert_type(client.annotate_task_data(12, {"caption": "x"}, schema="any"), dict[str, Any])
        assert_type(client.update_job(42, status="RUNNING"), dict[str, Any])
        assert_type(client.list_serve_applications(plugin_code="digits"), dict[str, Any])
        assert_type(client.create_serve_application(job=42, status="RUNNING"), dict[str, Any])
        assert_type(client.get_agent(1), dict[str, Any])
        assert_type(client.create_logs({"message": "x"}), None)
        found: Any = client.run_plugin("digits@1.0.0", {"action": "inference"})
        assert_type(classify_serve_app(found)[1], str | None)


async def call_the_backend_in_an_event_loop() -> None:
    """The same in `async` code."""
    async with AsyncBackendClient("https://backend.example", "token") as client:
        assert_type(await client.get_task(12), dict[str, Any])
        assert_type(await client.get_data_unit(13), dict[str, Any])


async def call_the_agent(job: str) -> None:
    """The calls of `ctx.agent_client`, logs among them."""
    client = AgentClient(
        "https://agent.example",
        "token",
        retries=RetryPolicy(attempts=1),
        stream_limits=StreamLimits(max_lines=10),
    )
    assert_type(client.health(), None)
    assert_type(client.check_feasibility("serve", num_cpus=2.0, replicas=2), dict[str, Any])
    assert_type(client.get_job(job), dict[str, Any])
    assert_type(client.list_nodes(), dict[str, Any])
    assert_type(client.list_job_logs(job), str)
    assert_type(client.delete_serve_application("digits@1.0.0"), None)
    assert_type(client.tail_job_logs(job, 5.0, "auto"), Generator[str])
    assert_type(client.websocket_tail_job_logs(job), Generator[str])
    assert_type(client.stream_tail_job_logs(job, stream_timeout=5), Generator[str])
    assert_type(client.log_tail(job, protocol="stream"), AsyncLogTail)


class OwnRayClient(RayClientMixin, BaseClient):
    """A client of the author's own."""

    def is_over(self, job: str) -> bool:
        """Whether the Ray job has ended."""
        return self.get_job(job)["status"] in {"SUCCEEDED", "FAILED", "STOPPED"}


def name_of_failure(client: BaseClient | OwnRayClient) -> str:
    """Errors, the most particular first."""
    try:
        client.close()
    except RateLimitError as error:
        assert_type(error.retry_after, float | None)
        return "slower"
    except (AuthenticationError, AuthorizationError, NotFoundError, ValidationError, ServerError) as error:
        answered: HTTPError = error
        return answered.detail
    except (StreamLimitExceededError, WebSocketError) as error:
        stream: StreamError = error
        return str(stream)
    except (ClientTimeoutError, ClientConnectionError, MalformedResponseError) as error:
        failed: ClientError = error
        assert_type((failed.status_code, failed.status, failed.detail), tuple[int, int, str])
        return error_type(failed)
    return redact(clean("token=abcdef"))


class NoModel:
    """No model of pydantic's."""


class WrongParams(BaseAction[NoModel]):  # type: ignore[type-var]
    """Parameters are a model of pydantic's."""


class WrongHook(ToTaskAction[ToTaskParams]):
    """A hook that forgets arguments, and one that returns text."""

    def convert_data_from_file(self, primary_file_url: str) -> dict[str, Any]:  # type: ignore[override]
        return {}

    def convert_data_from_inference(self, inference_data: Any, task_data: Any = None) -> str:  # type: ignore[override]
        return ""


class WrongName(BaseDeploymentAction[DeployParams]):
    """A name is text."""

    def get_serve_app_name(self) -> None:  # type: ignore[override]
        return None


def mistakes(client: BackendClient, agent: AgentClient, model: BaseModel) -> None:
    """What the checker must reject."""
    Deployment(model)  # type: ignore[arg-type]  # of another class than ShoutParams
    Deployment({}, ctx={"env": {}})  # type: ignore[arg-type]
    Shout()  # type: ignore[call-arg]  # the backend's URL is required
    BackendClient("https://backend.example")  # type: ignore[call-arg]
    BackendClient("https://backend.example", "token", "acme")  # type: ignore[call-arg]
    BackendClient("https://backend.example", "token", timeout=5)  # type: ignore[arg-type]
    AgentClient("https://agent.example", "token", retries=3)  # type: ignore[arg-type]
    client.get_task()  # type: ignore[call-arg]
    client.create_serve_application(42)  # type: ignore[call-arg]
    agent.tail_job_logs("raysubmit_1", protocol="ftp")  # type: ignore[arg-type]
    agent.get_job(17)  # type: ignore[arg-type]  # a Ray job's id is text
    agent.logs("raysubmit_1")  # type: ignore[attr-defined]
    ClientError("x", status_code=[500])  # type: ignore[arg-type]
    RateLimitError("x", 429, "", 3.0)  # type: ignore[call-arg]
