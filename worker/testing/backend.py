"""The platform's backend in memory: its projects, tasks, releases, jobs and applications, and all writes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from worker.platform import NotFoundError
from worker.testing.faults import Faults

Row = dict[str, Any]

APPLICATIONS_PAGE = 100
"""Records of applications in a page."""

UNIT_OFFSET = 1_000_000
"""Id of a task's data unit, less the id of the task."""


def image_and_label(task: int) -> Row:
    """The files of a task: an image, which is the primary file, and its label.

    Args:
        task: Id of the task.

    Returns:
        Files by the name of their specification.
    """
    return {
        "image": {"url": f"http://files/{task}.png", "is_primary": True, "file_name_original": f"{task}.png"},
        "label": {"url": f"http://files/{task}.json", "is_primary": False, "filename": f"{task}.json"},
    }


class FakeBackend:
    """All calls of `BackendClient` that the worker makes; `on_loop` has those of the asynchronous client.

    Attributes:
        faults: Errors to raise on demand, and the count of calls.
        project: The project; every id finds it.
        specifications: Names of the file specifications of its data collection.
        tasks: Ids of its tasks.
        files: The files of a task by its id.
        files_in_task: Whether a task comes with the files of its data unit.
        task_data: What tasks hold already, by id.
        page_size: Most ids in a page of the list of tasks.
        pages: Pages of that list to the letter, in place of `tasks`.
        release: The pre-processor's release; every id finds it.
        serve_applications: Records of applications, as the list answers them.
        jobs: Status of jobs by id; `default_status` for those that are not in it.
        results: Result of jobs by id.
        patches: The fields of every PATCH of a job, in their order.
        logs: Entries of logs that were posted.
        tenants: The tenant of every client that was asked for.
        dispatches: Code and body of every deployment that was dispatched.
        dispatch_answer: The answer to a dispatch, by how many there have been.
        inferences: Code and body of every inference.
        inference_answer: The answer to an inference's `params`.
        annotations: Task, data and schema of every annotation, in their order.
        in_flight: Concurrent asynchronous calls by name; `peak_in_flight` is the most there have been.
        before_annotation: Called with the task's id before it is written.
        after_patch: Called after each PATCH.
    """

    def __init__(self, tasks: Sequence[int] = ()) -> None:
        self.faults = Faults()
        self.project: Row = {"id": 1, "data_collection": 7}
        self.specifications = ["image", "label"]
        self.tasks = list(tasks)
        self.files: Callable[[int], Any] = image_and_label
        self.files_in_task = True
        self.task_data: dict[int, Any] = {}
        self.page_size = 1000
        self.pages: list[Row] | None = None
        self.release: Any = {"id": 7, "version": "1.0.0", "config": {"code": "digits", "actions": {}}}
        self.agents: dict[int, Row] = {}
        self.serve_applications: list[Row] = []
        self.jobs: dict[str, str] = {}
        self.results: dict[str, Row] = {}
        self.default_status = "RUNNING"
        self.patches: list[Row] = []
        self.logs: list[Row] = []
        self.tenants: list[str | None] = []
        self.dispatches: list[tuple[str, Row]] = []
        self.dispatch_answer: Callable[[int], Any] = lambda count: {"id": 100 + count}
        self.inferences: list[tuple[str, Row]] = []
        self.inference_answer: Callable[[Row], Any] = lambda params: {
            "seen": params["json"].get("image_path")
        }
        self.annotations: list[tuple[int, Row, str | None]] = []
        self.in_flight: Counter[str] = Counter()
        self.peak_in_flight: Counter[str] = Counter()
        self.before_annotation: Callable[[int], None] = lambda _task: None
        self.after_patch: Callable[[], object] = lambda: None
        self.on_loop = FakeAsyncBackend(self)

    @property
    def annotated(self) -> list[int]:
        """Ids of the tasks that were written, in their order, repetitions included."""
        return [task for task, _, _ in self.annotations]

    def add_application(self, status: str = "RUNNING", job: int = 101, **fields: Any) -> Row:
        """Record an application on Serve.

        Args:
            status: Its status (platform-api).
            job: The job that deployed it.
            **fields: Further fields of the record, such as `id` or `data`.

        Returns:
            The record.
        """
        record = {"id": 1, "status": status, "job": job, "data": None, **fields}
        self.serve_applications.append(record)
        return record

    # Projects and tasks

    def get_project(self, project: int) -> Row:
        """`GET projects/{id}/`."""
        with self.faults.of("get_project", project):
            return self.project

    def get_data_collection(self, collection: int) -> Row:
        """`GET data_collections/{id}/`."""
        with self.faults.of("get_data_collection", collection):
            return {"id": collection, "file_specifications": [{"name": name} for name in self.specifications]}

    def list_tasks(
        self,
        filters: Mapping[str, Any],
        project: int,
        page_size: int = 100,
        url: str | None = None,
    ) -> Row:
        """`GET sdk/tasks/`: one page of ids; `url` is the link that the page before gave."""
        with self.faults.of("list_tasks", project):
            number = int(url.rpartition("=")[2]) if url else 0
            if self.pages is not None:
                return self.pages[number]
            size = min(page_size, self.page_size)
            ids = self.tasks[number * size : (number + 1) * size]
            has_next = (number + 1) * size < len(self.tasks)
            link = f"http://backend/sdk/tasks/?page={number + 1}" if has_next else None
            return {"count": len(self.tasks), "next": link, "results": [{"id": task} for task in ids]}

    def get_task(self, task: int) -> Row:
        """`GET tasks/{id}/`."""
        with self.faults.of("get_task", task):
            unit: Row = {"id": task + UNIT_OFFSET}
            if self.files_in_task:
                unit["files"] = self.files(task)
            return {"id": task, "data": self.task_data.get(task), "data_unit": unit}

    def get_data_unit(self, data_unit: int) -> Row:
        """`GET data_units/{id}/`."""
        with self.faults.of("get_data_unit", data_unit):
            return {"id": data_unit, "files": self.files(data_unit - UNIT_OFFSET)}

    def annotate_task_data(self, task: int, data: Mapping[str, Any], schema: str | None = None) -> Row:
        """`PUT tasks/{id}/annotate_task_data/`."""
        with self.faults.of("annotate_task_data", task):
            self.annotations.append((task, dict(data), schema))
        return {"id": task}

    # Releases, jobs and applications

    def get_plugin_release(self, release: int | str) -> Any:
        """`GET plugin_releases/{id}/`."""
        with self.faults.of("get_plugin_release", release):
            return self.release

    def get_agent(self, agent: int) -> Row:
        """`GET agents/{id}/`; raises `NotFoundError` for one that is not in `agents`."""
        with self.faults.of("get_agent", agent):
            if agent not in self.agents:
                raise NotFoundError()
            return dict(self.agents[agent])

    def list_serve_applications(self, **query: Any) -> Row:
        """`GET serve_applications/`: all records, whatever the filters, as an older backend answers."""
        with self.faults.of("list_serve_applications", query.get("plugin_code")):
            return {"results": [dict(record) for record in self.serve_applications]}

    def serve_application_pages(self, **query: Any) -> Iterator[Row]:
        """The same page by page, from `page` on; a page that is asked for is a call."""
        size, number = APPLICATIONS_PAGE, int(query.get("page", 1))
        while True:
            with self.faults.of("list_serve_applications", query.get("plugin_code")):
                records = self.serve_applications[(number - 1) * size : number * size]
                has_next = number * size < len(self.serve_applications)
                link = f"http://backend/serve_applications/?page={number + 1}" if has_next else None
                count = len(self.serve_applications)
                page = {"count": count, "next": link, "results": [dict(record) for record in records]}
            yield page
            if not has_next:
                return
            number += 1

    def create_serve_application(self, **fields: Any) -> Row:
        """`POST serve_applications/`: two posts make two records."""
        with self.faults.of("create_serve_application", fields.get("job")):
            record = {"id": 900 + len(self.serve_applications), **fields}
            self.serve_applications.append(record)
        return record

    def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """`POST plugins/{code}/run/`: an inference, or the dispatch of a deployment."""
        is_inference = data.get("action") == "inference"
        (self.inferences if is_inference else self.dispatches).append((code, dict(data)))
        with self.faults.of("run_plugin", code):
            if is_inference:
                return self.inference_answer(data["params"])
            return self.dispatch_answer(len(self.dispatches))

    def get_job(self, job: int | str) -> Row:
        """`GET jobs/{id}/`."""
        with self.faults.of("get_job", str(job)):
            status = self.jobs.get(str(job), self.default_status)
            return {"id": job, "status": status, "result": self.results.get(str(job))}

    def update_job(self, job: int | str, **fields: Any) -> Row:
        """`PATCH jobs/{id}/`."""
        with self.faults.of("update_job", str(job)):
            self.patches.append(fields)
            self.jobs[str(job)] = str(fields.get("status", self.jobs.get(str(job), self.default_status)))
            self.after_patch()
        return {"id": job, "status": self.jobs[str(job)]}

    def create_logs(self, entries: list[Row]) -> None:
        """`POST logs/`."""
        with self.faults.of("create_logs"):
            self.logs += entries


class FakeAsyncBackend:
    """The calls of `AsyncBackendClient` on the state of a `FakeBackend`."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend

    async def get_task(self, task: int) -> Row:
        """`GET tasks/{id}/`."""
        async with self._overlapping("get_task"):
            return self._backend.get_task(task)

    async def get_data_unit(self, data_unit: int) -> Row:
        """`GET data_units/{id}/`."""
        async with self._overlapping("get_data_unit"):
            return self._backend.get_data_unit(data_unit)

    async def annotate_task_data(self, task: int, data: Mapping[str, Any], schema: str | None = None) -> Row:
        """`PUT tasks/{id}/annotate_task_data/`."""
        self._backend.before_annotation(task)
        async with self._overlapping("annotate_task_data"):
            return self._backend.annotate_task_data(task, data, schema)

    async def annotate(
        self, task: int, data: Mapping[str, Any], schema: str | None, record: Callable[[], Awaitable[None]]
    ) -> None:
        """Write the task and record it, as `worker.to_task.clients.TenantBackend` does."""
        await self.annotate_task_data(task, data, schema)
        await record()

    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """`POST plugins/{code}/run/`."""
        async with self._overlapping("run_plugin"):
            return self._backend.run_plugin(code, data)

    def capacity(self, application: str | None, seconds: float) -> int | None:
        """None, as nothing limits the requests in flight."""
        return None

    @asynccontextmanager
    async def _overlapping(self, call: str) -> AsyncIterator[None]:
        """Yield to the event loop a few times, so that concurrent calls overlap."""
        backend = self._backend
        backend.in_flight[call] += 1
        backend.peak_in_flight[call] = max(backend.peak_in_flight[call], backend.in_flight[call])
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            yield
        finally:
            backend.in_flight[call] -= 1
