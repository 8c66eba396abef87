// The list of runs: the live ones first, then those that have ended last.
import { h, setText } from "/static/dom.js";
import { dateTime, duration, statusName, t } from "/static/i18n.js";
import { hasEnded, live } from "/static/live.js";

const PAGE = 200;
const FILTERS = {
  all: () => true,
  live: (run) => !hasEnded(run),
  waits: (run) => Boolean(run.waiting_for),
  failedRuns: (run) => run.status === "FAILED" || run.failed > 0,
  haveEnded: hasEnded,
};

/** A run's row: made once, and then only its texts change. */
export class RunRow {
  constructor(job) {
    this.link = h("a", { href: `#/runs/${encodeURIComponent(job)}`, class: "job" }, job);
    this.plugin = h("span", { class: "plugin" });
    this.status = h("span", { class: "status" });
    this.step = h("span", { class: "step" });
    this.bar = h("progress", { max: 100, "aria-label": t("progressOf", { job }) });
    this.percent = h("span", { class: "percent" });
    this.tasks = h("span", { class: "tasks" });
    this.failed = h("span", { class: "failed" });
    this.left = h("span", { class: "left" });
    this.element = h("li", { class: "run" }, this.link, this.plugin, this.status, this.step,
      h("span", { class: "bar" }, this.bar, this.percent), h("span", { class: "counts" }, this.tasks, " ", this.failed), this.left);
  }

  update(run) {
    setText(this.plugin, `${run.plugin ?? ""} · ${run.action ?? ""}`);
    setText(this.status, statusName(run.status));
    this.status.dataset.status = run.status ?? "";
    setText(this.step, run.waiting_for ? t("waitsFor", { what: run.waiting_for }) : run.error || run.step || "");
    this.bar.value = run.overall ?? 0;
    setText(this.percent, `${Math.round(run.overall ?? 0)} %`);
    setText(this.tasks, run.total ? t("tasks", { done: (run.success ?? 0) + (run.failed ?? 0), total: run.total }) : "");
    setText(this.failed, run.failed ? t("failedTasks", { count: run.failed }) : "");
    this.tick(run);
  }

  /** What changes as time passes. */
  tick(run) {
    const until = hasEnded(run) ? run.updated : live.now();
    const passed = duration(until - (run.started ?? until));
    const text = hasEnded(run) ? `${dateTime(run.updated ?? 0)} · ${t("took", { time: passed })}` : t("since", { time: passed });
    setText(this.left, run.left != null && !hasEnded(run) ? `${text} · ${t("left", { time: duration(run.left) })}` : text);
  }
}

export function showRuns(main) {
  const rows = new Map();
  let limit = PAGE;
  let shown = [];
  const search = h("input", { type: "search", id: "search", oninput: () => arrange() });
  const filter = h("select", { id: "filter", onchange: () => arrange() },
    ...Object.keys(FILTERS).map((name) => h("option", { value: name }, t(name))));
  const count = h("p", { class: "count", role: "status" });
  const list = h("ul", { class: "runs" });
  const more = h("button", { type: "button", onclick: () => { limit += PAGE; arrange(); } }, t("showMore"));
  main.append(
    h("h1", {}, t("runs")),
    h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
      h("label", { for: "search" }, t("searchRuns")), search,
      h("label", { for: "filter" }, t("status")), filter),
    count, list, more);

  const matches = (job, run) => {
    const words = search.value.trim().toLowerCase();
    return FILTERS[filter.value](run)
      && (!words || `${job} ${run.plugin} ${run.action} ${run.step} ${run.waiting_for ?? ""}`.toLowerCase().includes(words));
  };

  /** Which rows are shown, and in which order: the row that has the focus stays the same element. */
  function arrange() {
    const found = [...live.runs].filter(([job, run]) => matches(job, run));
    found.sort(([a, first], [b, second]) =>
      hasEnded(first) - hasEnded(second) || second.started - first.started || (a < b ? -1 : 1));
    const jobs = found.slice(0, limit).map(([job]) => job);
    if (jobs.length !== shown.length || jobs.some((job, index) => job !== shown[index])) {
      const wanted = new Set(jobs);
      for (const job of shown) if (!wanted.has(job)) rows.get(job)?.element.remove();
      for (const job of rows.keys()) if (!live.runs.has(job)) rows.delete(job);
      let before = list.firstChild;
      for (const job of jobs) {
        const row = rows.get(job) ?? new RunRow(job);
        rows.set(job, row);
        row.update(live.runs.get(job));
        if (row.element === before) before = before.nextSibling;
        else list.insertBefore(row.element, before);
      }
      shown = jobs;
    }
    setText(count, found.length ? t("shown", { shown: jobs.length, all: live.runs.size }) : t("noRuns"));
    more.hidden = found.length <= limit;
  }

  function change(event) {
    const jobs = event.detail ?? live.runs.keys();
    for (const job of jobs) {
      const run = live.runs.get(job);
      if (run) rows.get(job)?.update(run);
    }
    arrange();
  }

  const ticking = setInterval(() => {
    for (const job of shown) {
      const run = live.runs.get(job);
      if (run && !hasEnded(run)) rows.get(job).tick(run);
    }
  }, 1000);
  live.addEventListener("change", change);
  arrange();
  return () => {
    clearInterval(ticking);
    live.removeEventListener("change", change);
  };
}
