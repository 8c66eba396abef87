"""Take the screenshots of the live page for the docs, of real runs on a sandbox.

    python -m tools.screenshots

It runs the demo, a run some of whose tasks fail, and one that is still at work while its pictures are taken.
`--only` takes some of them again; `--without-ray` leaves out what needs Ray, which is the picture of the
deployments. Writes `docs/images/console-*.png`. Needs Chromium, and some minutes.
"""

import argparse
import shutil
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from shared import JobStatus, Publisher, ToTaskMessage
from tools.tree import ROOT
from worker.cli.demo import annotate_digits
from worker.cli.sandbox import EXAMPLE_PLUGINS_DIR, print_progress
from worker.sandbox import Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import seed_numbered_project

FOLDER: Final = ROOT / "docs" / "images"
DESKTOP, PHONE = (1280, 860), (360, 740)
MAX_SECONDS: Final = 600.0

SHOTS: Final = (
    ("runs", "runs", DESKTOP, "light", "en-GB"),
    ("live", "runs/{live}", DESKTOP, "light", "en-GB"),
    ("phone", "runs/{live}", PHONE, "light", "en-GB"),
    ("phone-korean", "runs", PHONE, "dark", "ko-KR"),
    ("queues", "queues", DESKTOP, "dark", "en-GB"),
    ("deployments", "deployments", DESKTOP, "light", "en-GB"),
    ("run", "runs/{ended}", DESKTOP, "dark", "en-GB"),
    ("ended", "ended", DESKTOP, "light", "en-GB"),
    ("retry", "runs/{failed}", DESKTOP, "light", "en-GB"),
    ("labels", "labels", DESKTOP, "light", "en-GB"),
)
"""Name, address, size, colours and language of each; first those on which the run at work is to be seen."""

PHOTOS: Final = """
    import time

    from worker.actions import ToTaskAction


    class ToTask(ToTaskAction):
        def convert_data_from_file(self, primary_file_url, primary_file_name, *data_file, task_data=None):
            time.sleep(0.2)
            if int(primary_file_name.split(".")[0]) % 12 == 7:
                raise ValueError(f"{primary_file_name}: the image is empty")
            return {"classification": {"kind": "photo"}}
    """


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="*", default=[shot[0] for shot in SHOTS], help="The names of those to take."
    )
    parser.add_argument("--without-ray", action="store_true", help="Take those that need no Ray.")
    options = parser.parse_args()
    with_ray = not options.without_ray
    names = [name for name in options.only if with_ray or name != "deployments"]
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        plugins = Path(folder) / "plugins"
        _add_releases(plugins)
        with Sandbox(plugins_dir=plugins, with_ray=with_ray, on_progress=print_progress) as sandbox:
            sandbox.start_worker(env={"WORKER_PLUGIN_HOST": "ray" if with_ray else "process"})
            samples = sandbox.files_dir / "digits"
            url = sandbox.start_console(samples=samples)
            _take(url, _run_all(sandbox, url, samples), names)


def _add_releases(plugins: Path) -> None:
    """The demo's release, and one whose tasks take a while, and fail now and then."""
    shutil.copytree(EXAMPLE_PLUGINS_DIR / "digits@1.0.0", plugins / "digits@1.0.0")
    release = plugins / "photos@1.0.0"
    (release / "plugin").mkdir(parents=True)
    (release / "plugin" / "__init__.py").touch()
    (release / "plugin" / "actions.py").write_text(textwrap.dedent(PHOTOS))
    (release / "config.yaml").write_text(
        "code: photos\nversion: 1.0.0\nactions:\n  to_task: {entrypoint: plugin.actions.ToTask}\n"
    )


def _run_all(sandbox: Sandbox, url: str, samples: Path) -> dict[str, str]:
    """The jobs of runs: one that has ended, one with failed tasks, and one that is at work."""
    ended = annotate_digits(sandbox, "file", {"target_specification_name": "label_1"}, samples)
    if sandbox.ray is not None:
        release = sandbox.state.value("SELECT id FROM plugin_releases WHERE code = 'digits'")
        ended = annotate_digits(sandbox, "inference", {"pre_processor": release, "model": 1}, samples)
    failed = _publish(sandbox, "spring photos", 60)
    wait_for(lambda: _status(sandbox, failed).is_final, MAX_SECONDS, "the end of a run")
    live = _publish(sandbox, "autumn photos", 5_000)

    def is_at_work() -> bool:
        answer = httpx.get(f"{url}/api/runs/{live}", trust_env=False, timeout=30)
        return answer.is_success and answer.json()["values"].get("success", 0) >= 200

    wait_for(is_at_work, MAX_SECONDS, "a run at work")
    return {"ended": ended.job, "failed": failed, "live": live}


def _publish(sandbox: Sandbox, name: str, tasks: int) -> str:
    project, job = seed_numbered_project(sandbox.state, tasks), str(sandbox.state.add_job())
    params = {"name": name, "project": project.id, "agent": AGENT_ID, "target_specification_name": "label_1"}
    message = ToTaskMessage.model_validate({"job": job, "plugin": "photos@1.0.0", "params": params})
    with Publisher(sandbox.redis_url) as publisher:
        publisher.publish(message)
    return job


def _status(sandbox: Sandbox, job: str) -> JobStatus:
    return JobStatus((sandbox.state.job(int(job)) or {})["status"])


def _take(url: str, jobs: dict[str, str], names: Sequence[str]) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, address, size, scheme, language in SHOTS:
            if name in names:
                page = _open(browser, f"{url}/#/{address.format(**jobs)}", size, scheme, language)
                page.screenshot(path=FOLDER / f"console-{name}.png")
                page.context.close()
                print_progress(f"console-{name}.png, {time.strftime('%H:%M:%S')}")
        browser.close()


def _open(browser: Browser, url: str, size: tuple[int, int], scheme: str, language: str) -> Page:
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, locale=language)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.locator("main li:visible, tbody tr:visible, .note:visible").first.wait_for()
    page.wait_for_timeout(7_000)  # for what is asked of agents and workers
    return page


if __name__ == "__main__":
    main()
