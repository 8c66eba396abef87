"""What many workers, waiting runs and tasks need of Redis, backend and workers, from measured costs.

`scale_costs.py` measures the costs, `common/scale_model.py` derives from them. --write puts the tables into
`docs/scale.md`.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from common.scale_model import (
    INSTALLATIONS,
    Result,
    demand,
    first_full,
    grown,
    simulate_installation,
    simulate_point,
)
from engine import HERE
from scale_costs import RESULTS

GROWTH = (0.5, 1.0, 2.0, 3.0, 5.0)
"""Times the largest installation's load."""
PAGE = HERE.parent / "docs" / "scale.md"


# -- tables ------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def costs_table(costs: dict[str, Any]) -> str:
    """What was measured, and how."""
    broker, worker, run = costs["broker"], costs["idle_worker"], costs["run_accepted"]
    poll, out, task, file = (
        costs[name] for name in ("pre_processor_waited_for", "run_resumed", "task_by_file", "run_by_file")
    )
    rows = [
        ("Redis without clients", f"{costs['redis_alone']['redis_us_a_second']:.0f} µs/s", "", ""),
        (
            "the sweep and the maintenance of one elected worker",
            f"{costs['elected_worker']['redis_us_a_second']:.0f} µs/s",
            "in the next",
            "",
        ),
        (
            "an idle worker of all queues",
            f"{worker['redis_us_a_second']:.0f} µs/s ({worker['commands_a_second']:.0f} commands/s)",
            f"{worker['cpu_share']:.2%} of a core, {worker['megabytes']:.0f} MB",
            f"{worker['connections']:.0f} connections to Redis",
        ),
        (
            "a message, one consumer",
            f"{broker['message_redis_us']:.0f} µs ({broker['commands_a_message']:.0f} commands)",
            "in those below",
            f"delay p50 {broker['delay_p50_ms']:.1f} ms",
        ),
        (
            "a message, for each other idle consumer",
            f"{broker['message_redis_us_each_other_consumer']:.1f} µs",
            "not measured",
            "",
        ),
        (
            "a run until it waits for its pre-processor",
            f"{run['redis_us']:.0f} µs ({run['commands']:.0f} commands)",
            f"{run['worker_ms']:.1f} ms",
            f"{run['requests']:.1f} requests; {run['redis_bytes']:.0f} bytes in Redis while it waits",
        ),
        (
            "a pre-processor that is waited for",
            f"{poll['redis_us_a_second']:.0f} µs/s",
            f"{poll['worker_ms_a_second']:.2f} ms/s",
            f"{poll['requests_a_second']:.2f} requests/s",
        ),
        (
            "a run from its list to its end, without tasks",
            f"{out['redis_us']:.0f} µs",
            f"{out['worker_ms']:.1f} ms",
            f"{out['requests']:.1f} requests",
        ),
        (
            "a run by file, tasks apart",
            f"{file['redis_us']:.0f} µs",
            f"{file['worker_ms']:.1f} ms",
            f"{file['requests']:.1f} requests; {file['redis_bytes']:.0f} bytes in Redis for a day",
        ),
        (
            "a task by file",
            f"{task['redis_us']:.1f} µs ({task['commands']:.2f} commands)",
            f"{task['worker_ms']:.2f} ms",
            f"{task['requests']:.2f} requests; {task['redis_bytes']:.1f} bytes in Redis for a day",
        ),
    ]
    return table(("what", "Redis, main thread", "worker, CPU", "and"), rows)


def check_rows(costs: dict[str, Any]) -> Iterator[Sequence[str]]:
    """Each measured point beside its simulation."""
    for point in costs["points"]:
        found = simulate_point(costs, point)
        yield (
            f"{point['consumers']:.0f}",
            f"{point['rate']:.0f}",
            f"{point['redis_busy']:.1%}",
            f"{found.redis_busy:.1%}",
            f"{point['delay_p50_ms']:.1f}",
            f"{found.delay_p50_ms:.1f}",
            f"{point['delay_p99_ms']:.1f}",
            f"{found.delay_p99_ms:.1f}",
        )


CHECK_HEAD = (
    "consumers",
    "messages/s",
    "Redis busy, measured",
    "simulated",
    "delay p50, ms, measured",
    "simulated",
    "p99, measured",
    "simulated",
)


def delay_text(found: Result) -> str:
    """The median and the 99th percentile, where there are any."""
    if not found.is_stable:
        return "grows without end"
    return f"{found.delay_p50_ms:.1f}, {found.delay_p99_ms:.1f}"


def installations_table(costs: dict[str, Any]) -> str:
    """A column an installation."""
    demands = [demand(costs, load) for load in INSTALLATIONS]
    results = [simulate_installation(costs, load) for load in INSTALLATIONS]
    limits = [first_full(costs, load) for load in INSTALLATIONS]
    rows = [
        ["tasks a second at the peak", *(f"{load.tasks:,.0f}" for load in INSTALLATIONS)],
        ["Redis's main thread", *(f"**{sum(each.redis_busy.values()):.1%}**" for each in demands)],
        *(
            [f"of it: {name}", *(f"{each.redis_busy[name]:.2%}" for each in demands)]
            for name in demands[0].redis_busy
        ),
        ["with a Redis of the broker's own", *(f"{each.broker_busy:.1%} of it there" for each in demands)],
        [
            "runs in Redis that wait, or have ended within a day, GB",
            *(f"{each.redis_gb:,.2f}" for each in demands),
        ],
        ["connections to Redis", *(f"{each.connections:,.0f}" for each in demands)],
        ["cores of all workers", *(f"{each.worker_cores:,.1f}" for each in demands)],
        ["requests of the backend a second", *(f"{each.requests:,.0f}" for each in demands)],
        [
            "seconds to accept all waiting runs at once, by Redis",
            *(
                f"{load.waiting_runs / each.runs_a_second:,.0f}"
                for load, each in zip(INSTALLATIONS, demands, strict=True)
            ),
        ],
        [
            "delay of a message, p50 and p99, simulated, ms",
            *map(delay_text, results),
        ],
        ["full first, at this many times the load", *(f"{name}: {times:.1f}" for name, times in limits)],
    ]
    return table(("", *(load.name for load in INSTALLATIONS)), rows)


def growth_table(costs: dict[str, Any]) -> str:
    """The largest installation with more load and as many more workers."""
    rows = []
    for times in GROWTH:
        load = grown(INSTALLATIONS[-1], times)
        busy = sum(demand(costs, load).redis_busy.values())
        delay = delay_text(simulate_installation(costs, load))
        rows.append((f"{times:g}", f"{load.workers:,}", f"{busy:.0%}", delay))
    return table(("load", "workers", "Redis's main thread asked for", "delay p50, p99, ms"), rows)


def write_page(tables: dict[str, str]) -> None:
    """Put the tables between their marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables.items():
        mark = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        filled = lambda ends, text=text: f"{ends[1]}{text}\n{ends[2]}"  # noqa: E731
        page, found = re.subn(mark, filled, page, flags=re.DOTALL)
        if not found:
            raise LookupError(f"{PAGE} has no place for the table {name!r}")
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Print the tables; with --write, put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="makes no difference: this measures nothing")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    arguments = parser.parse_args()
    costs = json.loads(RESULTS.read_text(encoding="utf-8"))
    measured = costs["measured"]
    tables = {
        "measured": f"Measured on {measured['date']} at commit `{measured['commit']}`, with Python"
        f" {measured['python']}, on {measured['cores']} cores; load {measured['load']:.1f} at the end, the"
        " measurement's own included.",
        "costs": costs_table(costs),
        "check": table(CHECK_HEAD, check_rows(costs)),
        "installations": installations_table(costs),
        "growth": growth_table(costs),
    }
    if arguments.write:
        write_page(tables)
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
