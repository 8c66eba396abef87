// The runs that have ended, the last one first: page by page from what is kept of them, also of those that nobody saw end.
import { ask, h, setText } from "/static/dom.js";
import { statusName, t } from "/static/i18n.js";
import { hasEnded, live } from "/static/live.js";
import { RunRow } from "/static/runs.js";

const STATUSES = ["SUCCEEDED", "FAILED", "STOPPED"];
const MILLISECONDS_BETWEEN_LOOKS = 2_000;

export function showEnded(main) {
  let shown = new Map();
  let next = null;
  let asked = 0;
  let isLoading = false;
  let soon = null;
  const status = h("select", { id: "status", onchange: () => start() },
    h("option", { value: "" }, t("all")), ...STATUSES.map((name) => h("option", { value: name }, statusName(name))));
  const note = h("p", { class: "count", role: "status" }, t("loading"));
  const list = h("ul", { class: "runs" });
  const more = h("button", { type: "button", hidden: true, onclick: () => load(next, add) }, t("showMore"));
  main.append(
    h("h1", {}, t("ended")),
    h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
      h("label", { for: "status" }, t("status")), status),
    note, list, more);

  /** Ask for a page; what is asked for later makes an earlier answer void. */
  async function load(from, use) {
    const turn = (asked += 1);
    isLoading = true;
    const query = new URLSearchParams({ status: status.value, from: from ?? "" });
    try {
      const page = await ask(`/api/ended?${query}`);
      if (turn !== asked) return;
      use(page);
      setText(note, shown.size ? t("endedShown", { shown: shown.size, all: Math.max(page.count, shown.size) }) : t("noEnded"));
    } catch (error) {
      if (turn !== asked) return;
      setText(note, error.message);
    }
    isLoading = false;
    more.hidden = next === null;
  }

  function start() {
    load(null, (page) => {
      shown = new Map();
      list.replaceChildren();
      add(page);
    });
  }

  function add(page) {
    list.append(...page.runs.filter(({ job }) => !shown.has(job)).map(row));
    next = page.next;
  }

  /** What has ended since is put before the others; where that is more than a page, the list begins anew. */
  function addNewest(page) {
    if (shown.size && page.runs.length && !page.runs.some(({ job }) => shown.has(job))) {
      shown = new Map();
      list.replaceChildren();
    }
    if (!shown.size) {
      add(page);
      return;
    }
    list.prepend(...page.runs.filter(({ job }) => !shown.has(job)).map(row));
  }

  function row(run) {
    const made = new RunRow(run.job);
    made.update(run);
    shown.set(run.job, run);
    return made.element;
  }

  function lookSoon() {
    soon ??= setTimeout(() => {
      soon = null;
      if (isLoading) lookSoon();
      else load(null, addNewest);
    }, MILLISECONDS_BETWEEN_LOOKS);
  }

  const isNew = (job) => {
    const run = live.runs.get(job);
    return run && hasEnded(run) && !shown.has(job) && (!status.value || run.status === status.value);
  };
  const change = (event) => {
    if (!event.detail || [...event.detail].some(isNew)) lookSoon();
  };
  live.addEventListener("change", change);
  start();
  return () => {
    asked += 1;
    clearTimeout(soon);
    live.removeEventListener("change", change);
  };
}
