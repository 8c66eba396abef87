"""On a real worker a tenant works on as many chunks and runs as it may, and holds up no other tenant."""

from collections.abc import Iterator

import pytest
from redis import Redis

from shared.messages import ToTaskMessage
from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.integration.safety.redis_monitor import RedisMonitor
from worker.runs.shares.slots import Share, Slots, Waits, slots_key
from worker.runs.store import CollectedMessage, RunStore
from worker.sandbox.seed import SeededProject

WRITE = r"/tasks/\d+/annotate"
TASKS = 20


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedHarness]:
    """One chunk and two runs of a tenant at once."""
    harness = ProxiedHarness(tmp_path_factory.mktemp("shares"))
    try:
        harness.start(
            WORKER_TENANT_CHUNKS="1",
            WORKER_TENANT_RUNS="2",
            WORKER_ANNOTATE_CHUNK=str(TASKS),
            WORKER_ANNOTATE_CONCURRENCY="64",
        )
        yield harness
    finally:
        harness.close()


def publish(harness: ProxiedHarness, tenant: str, tasks: int) -> tuple[str, SeededProject]:
    job, project = harness.new_job(plugin="echo@1.0.0", action="to_task"), harness.new_project(tasks)
    params = harness.to_task_params(project)
    fields = {"job": job, "plugin": "echo@1.0.0", "params": params, "tenant": tenant}
    harness.publish(ToTaskMessage.model_validate(fields))
    return job, project


def writing_times(harness: ProxiedHarness, project: SeededProject) -> tuple[float, float]:
    """When the first write of a project began, and when the last one ended."""
    writes = [
        request
        for request in harness.proxy.requests("PUT", WRITE)
        if int(request.path.split("/tasks/")[1].split("/")[0]) in project.tasks
    ]
    return min(write.began for write in writes), max(write.ended for write in writes)


def test_a_tenant_annotates_one_chunk_after_the_other(harness: ProxiedHarness) -> None:
    with harness.proxy.delay("PUT", WRITE, 0.5):
        # When two runs of a tenant, and one of another, have a chunk each
        runs = [publish(harness, tenant, TASKS) for tenant in ("acme", "acme", "other")]
        assert [harness.wait_for_end(job)["status"] for job, _ in runs] == ["SUCCEEDED"] * 3

    # Then the chunks of the tenant are not worked on at once, while that of the other one waits for neither
    (_, first_end), (second_begin, second_end) = sorted(
        writing_times(harness, project) for _, project in runs[:2]
    )
    other_begin, _ = writing_times(harness, runs[2][1])
    assert first_end <= second_begin
    assert other_begin < second_end


def test_other_runs_end_beside_a_tenant_with_large_ones(harness: ProxiedHarness) -> None:
    # Given a tenant whose runs have many chunks
    with harness.proxy.delay("PUT", WRITE, 0.05):
        large = [publish(harness, "acme", 60 * TASKS)[0] for _ in range(2)]
        slots = slots_key(Share.CHUNKS, "acme")
        harness.wait_for(lambda: harness.redis.zcard(slots) == 1, "chunks of the large runs")

        # When others publish small runs, then they end while those are under way
        small = [publish(harness, f"tenant-{number}", TASKS)[0] for number in range(3)]
        assert [harness.wait_for_end(job)["status"] for job in small] == ["SUCCEEDED"] * 3
        assert [harness.job(job)["status"] for job in large] == ["RUNNING"] * 2
        assert harness.redis.zcard(slots) <= 1
        for job in large:
            harness.stop(job)
            harness.wait_for_end(job)
    # And what was stopped leaves nothing behind
    harness.wait_for(lambda: not harness.redis.keys("*tenants:chunks:*acme"), "the end of all slots")


def test_further_runs_of_a_tenant_wait(harness: ProxiedHarness) -> None:
    with harness.proxy.delay("PUT", WRITE, 1.0):
        under_way = [publish(harness, "busy", 3)[0] for _ in range(2)]
        for job in under_way:
            harness.wait_for(lambda job=job: harness.job(job)["status"] == "RUNNING", "two runs")  # type: ignore[misc]

        # When a third one comes, then it waits and says for what
        third, _ = publish(harness, "busy", 3)
        harness.wait_for(lambda: harness.run_record(third).get("waiting_for"), "the third run")
        assert harness.job(third)["status"] == "PENDING"
        assert "waiting_for" not in harness.run_record(under_way[0])

        # And it ends once one of them has
        assert harness.wait_for_end(third)["status"] == "SUCCEEDED"
    assert "waiting_for" not in harness.run_record(third)


def test_a_run_that_is_stopped_while_it_waits_frees_nothing(harness: ProxiedHarness) -> None:
    with harness.proxy.delay("PUT", WRITE, 1.0):
        jobs = [publish(harness, "stopping", 3)[0] for _ in range(3)]
        harness.wait_for(
            lambda: [job for job in jobs if harness.run_record(job).get("waiting_for")], "the run that waits"
        )
        (waits,) = [job for job in jobs if harness.run_record(job).get("waiting_for")]

        harness.stop(waits)

        assert harness.wait_for_end(waits, 10)["status"] == "STOPPED"
        others = [job for job in jobs if job != waits]
        assert [harness.wait_for_end(job)["status"] for job in others] == ["SUCCEEDED"] * 2


@pytest.mark.parametrize("operation", ["take", "free"])
def test_a_slot_costs_the_same_however_many_wait(harness: ProxiedHarness, operation: str) -> None:
    # Given a database without workers, and a run that is open
    url = harness.redis_url.removesuffix("/0") + "/9"
    redis = Redis.from_url(url, decode_responses=True)
    params = {**harness.to_task_params(harness.new_project(1)), "target_specification_name": "label_1"}
    fields = {"job": "1", "plugin": "echo@1.0.0", "params": params}
    RunStore(redis).accept(ToTaskMessage.model_validate(fields), "to_task")
    slots = Slots(redis, Share.CHUNKS, 1)
    waits = Waits(CollectedMessage(("queue", ""), "LPUSH", "{}"))

    def commands(tenants: int) -> int:
        """Commands of Redis for one slot, beside so many tenants, of each of which as many chunks wait."""
        for tenant in range(tenants):
            for holder in range(tenants):
                slots.take(f"{tenants}-{tenant}", f"holder-{holder}", "1", waits)
        with RedisMonitor(url) as monitor:
            if operation == "take":
                slots.take(f"{tenants}-0", "another", "1", waits)
            else:
                slots.free(f"{tenants}-0", "holder-0")
            redis.echo("the end")
            harness.wait_for(lambda: any("the end" in each for each in monitor.commands), "the commands")
        return len([each for each in monitor.commands if f":{tenants}-0" in each and "EVAL" not in each])

    # Then a slot costs the same beside three as beside thirty
    assert 0 < commands(3) == commands(30)
    redis.flushdb()
    redis.close()
