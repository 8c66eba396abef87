"""All benchmarks in one run: each script in a process of its own, then one table, a JSON file and a picture.

`--quick` measures what has a goal, with small counts, in under three minutes on an idle machine. What it
finds is kept beside the figures of a whole run, and never in place of them.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from common.results import RESULTS, Row, argument_parser, circumstances, draw, show

GOALS = ("annotate", "workers", "large_runs", "deploy", "log_relay", "start")
"""Each has rows with a goal; `--quick` measures these."""
OTHERS = ("broker", "engine", "idle_consumers", "idle_workers", "many_runs", "waiting_list")
HERE = Path(__file__).parent


def rows_of(script: str, *, is_quick: bool, folder: Path) -> list[Row] | None:
    """Run a script and read its rows; None when it failed, and said so."""
    file = folder / f"{script}.json"
    command = [sys.executable, str(HERE / f"{script}.py"), "--rows", str(file)]
    print(f"{script} …", flush=True)
    begun = time.monotonic()
    done = subprocess.run(command + ["--quick"] * is_quick, check=False)
    print(f"{script}: {time.monotonic() - begun:.0f} s", flush=True)
    if done.returncode:
        return None
    return [Row.from_json(found) for found in json.loads(file.read_text(encoding="utf-8"))]


def keep(rows: Sequence[Row], name: str, seconds: float) -> None:
    """Print the table, and write the two files."""
    found = circumstances() | {"seconds": round(seconds)}
    title = f"synapse-worker: {name}"
    caption = ", ".join(f"{key} {value}" for key, value in found.items())
    show(rows, title, caption)
    RESULTS.mkdir(exist_ok=True)
    kept = {"measured": found, "rows": [row.as_json() for row in rows]}
    (RESULTS / f"{name}.json").write_text(
        json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    draw(rows, title, caption, RESULTS / f"{name}.svg")
    print(f"{RESULTS.relative_to(HERE.parent)}/{name}.json and .svg")


def main() -> int:
    """Run the scripts one after the other; 1 when one of them failed."""
    parser = argument_parser(__doc__, quick="the goals alone, with small counts: under three minutes")
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="these scripts alone")
    arguments = parser.parse_args()
    begun = time.monotonic()
    rows: list[Row] = []
    failed: list[str] = []
    with TemporaryDirectory() as folder:
        for script in arguments.only or GOALS + (() if arguments.quick else OTHERS):
            found = rows_of(script, is_quick=arguments.quick, folder=Path(folder))
            rows += found or []
            failed += [] if found is not None else [script]
    keep(rows, "bench-quick" if arguments.quick else "bench", time.monotonic() - begun)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
