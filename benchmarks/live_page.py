"""The live page with many runs: CPU of the console and of a browser, and the delay to the screen.

    python benchmarks/live_page.py [--runs 1000] [--rate 1000] [--seconds 20]

Each run gets on in turn, `rate` changes a second in all, by the scripts that a worker calls. A real Chromium,
where there is one, shows the list, and notes when the percentage of its first run changes.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis

from shared.messages import DeployMessage
from worker.runs.model import Step
from worker.runs.progress import DEPLOY, Progress
from worker.runs.store import RunStore
from worker.sandbox import Sandbox

STEP = Step("deploy.serve_run", position=10)
SAMPLES = 20
OBSERVE = """(job) => {
  window.seen = [];
  const link = [...document.querySelectorAll("li.run .job")].find((each) => each.textContent === job);
  const percent = link.closest("li").querySelector(".percent");
  new MutationObserver(() => window.seen.push([percent.textContent, Date.now() / 1000]))
    .observe(percent, { childList: true, characterData: true, subtree: true });
}"""


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plugins = Path(folder) / "plugins"
        plugins.mkdir()
        with Sandbox(Path(folder) / "sandbox", plugins_dir=plugins, with_ray=False) as sandbox:
            redis = Redis.from_url(sandbox.redis_url, decode_responses=True)
            _begin(redis, options.runs)
            began = time.monotonic()
            url = sandbox.start_console()
            figures: dict[str, Any] = {"seconds until ready": round(time.monotonic() - began, 2)}
            console = psutil.Process(sandbox.consoles[0].pid)
            with httpx.stream("GET", f"{url}/api/events", trust_env=False) as events, _chromium(url) as page:
                threading.Thread(target=_drain, args=(events,), daemon=True).start()
                figures |= _measure(redis, console, page, options)
            print(json.dumps({**vars(options), **figures}, indent=2))


def _begin(redis: Redis, count: int) -> None:
    store = RunStore(redis, 600.0)
    for number in range(count):
        message = {"job": str(number), "plugin": "digits@1.0.0", "agent": 1}
        store.accept(DeployMessage.model_validate(message), "deploy")
        store.claim_step(str(number), STEP, "", "token", 30, 0, False)
        store.mark_running(str(number))


def _drain(events: httpx.Response) -> None:
    """A second browser, which only listens."""
    try:
        for _ in events.iter_raw():
            pass
    except httpx.HTTPError:
        return


def _measure(redis: Redis, console: psutil.Process, page: Any, options: argparse.Namespace) -> dict[str, Any]:
    progress, watched = Progress(redis), "0"
    if page is not None:
        watched = page.locator("li.run .job").first.inner_text()
        page.evaluate(OBSERVE, watched)
    others = [str(number) for number in range(options.runs) if str(number) != watched]
    browsers = [each for each in psutil.process_iter(["name"]) if "chrom" in (each.info["name"] or "")]
    before, browser_before = sum(console.cpu_times()[:2]), _cpu(browsers)
    published: list[float] = []
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < options.seconds:
        due = int(passed * options.rate)
        for number in range(sent, due):
            percent = 100 * passed / options.seconds * (0.5 + number % 2 / 2)
            progress.set(others[number % len(others)], DEPLOY, "deploy", round(percent, 2))
        sent = max(sent, due)
        # Whole percents of the whole, each of which is another text on the page.
        if len(published) < min(SAMPLES, passed / options.seconds * SAMPLES):
            published.append(time.time())
            progress.set(watched, DEPLOY, "deploy", 4 * len(published))
        time.sleep(0.005)
    seconds = time.monotonic() - began
    figures: dict[str, Any] = {
        "changes a second": round(sent / seconds),
        "console, percent of a core": round(100 * (sum(console.cpu_times()[:2]) - before) / seconds, 1),
        "console, MB": round(console.memory_info().rss / 1024**2),
    }
    if page is not None:
        figures["browser, percent of a core"] = round(100 * (_cpu(browsers) - browser_before) / seconds, 1)
        page.wait_for_timeout(1000)
        seen = page.evaluate("window.seen")
        delays = [at - sent_at for sent_at, (_, at) in zip(published, seen, strict=False)]
        figures["changes seen"] = f"{len(seen)} of {len(published)}"
        if len(seen) == len(published):
            figures["seconds to the screen, median"] = round(statistics.median(delays), 3)
            figures["seconds to the screen, most"] = round(max(delays), 3)
    return figures


def _cpu(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


@contextmanager
def _chromium(url: str) -> Iterator[Any]:
    """A page in a browser; None where there is no browser."""
    program = shutil.which("chromium")
    if program is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(url)
        yield page
        browser.close()


if __name__ == "__main__":
    main()
