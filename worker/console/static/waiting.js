// Who waits for what, since when, until when at most, and why it takes long.
import { ask, h, setText } from "/static/dom.js";
import { clockTime, duration, statusName, t } from "/static/i18n.js";
import { live } from "/static/live.js";
import { every } from "/static/poll.js";

const MAX_ROWS = 100;

export function showWaiting(main) {
  let lists = [];
  const groups = h("div", {});
  const none = h("p", { class: "note", role: "status" });
  main.append(h("h1", {}, t("waiting")), none, groups);

  function render() {
    const byWhat = new Map();
    for (const [job, run] of live.runs) {
      if (run.waiting_for) byWhat.set(run.waiting_for, [...(byWhat.get(run.waiting_for) ?? []), [job, run]]);
    }
    setText(none, byWhat.size ? "" : t("noWaiting"));
    // What somebody reads with the keyboard is not replaced under the focus.
    const focused = groups.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    groups.replaceChildren(...[...byWhat].map(([what, runs]) => group(what, runs, lists)));
    if (focused) groups.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }

  const change = (event) => {
    if (!event.detail || [...event.detail].some((job) => live.runs.get(job)?.waiting_for || groups.querySelector(`[data-job="${CSS.escape(job)}"]`))) render();
  };
  live.addEventListener("change", change);
  const leave = every(5, async () => {
    lists = await ask("/api/waiting").catch(() => lists);
    render();
  });
  render();
  return () => {
    leave();
    live.removeEventListener("change", change);
  };
}

function group(what, runs, lists) {
  // The record's text may be cut, so it is compared by its beginning.
  const list = lists.find((each) => `pre-processor ${each.release}`.startsWith(what.replace(/(\.\.\.|…)$/, "")));
  runs.sort(([, a], [, b]) => (a.waiting_until ?? 0) - (b.waiting_until ?? 0));
  return h("section", { class: "card" },
    h("h2", {}, what),
    h("p", { class: "note" }, t("waitingRuns", { count: runs.length })),
    ...reasons(list, runs).map((reason) => h("p", { class: "why" }, h("b", {}, t("why")), " ", ...reason)),
    h("ul", { class: "waiters" }, ...runs.slice(0, MAX_ROWS).map(([job, run]) => h("li", { "data-job": job },
      h("a", { href: `#/runs/${encodeURIComponent(job)}` }, job), " ",
      h("span", {}, run.plugin ?? ""), " ",
      h("span", {}, t("since", { time: duration(live.now() - (run.waiting_since ?? run.updated ?? live.now())) })), " ",
      h("span", {}, run.waiting_until ? t("until", { time: clockTime(run.waiting_until) }) : "")))));
}

/** Why it takes long: how far the deployment has come, and what the workers found out. */
function reasons(list, runs) {
  const found = [];
  const dispatch = list?.dispatch;
  if (list && !dispatch) found.push([t("notDispatched")]);
  if (dispatch?.failure) found.push([t("dispatchFailed", { why: dispatch.failure })]);
  else if (dispatch?.job) {
    const run = live.runs.get(dispatch.job);
    const parts = run ? [statusName(run.status), run.step, run.waiting_for && t("waitsFor", { what: run.waiting_for }), `${Math.round(run.overall ?? 0)} %`] : [];
    found.push([h("a", { href: `#/runs/${encodeURIComponent(dispatch.job)}` }, t("dispatchedAs", { job: dispatch.job })),
      parts.length ? ` (${parts.filter(Boolean).join(", ")})` : ""]);
  } else if (dispatch) found.push([t("dispatchSent", { time: duration(live.now() - dispatch.since) })]);
  const message = runs.map(([, run]) => run.message).filter(Boolean).at(-1);
  if (message) found.push([message]);
  return found;
}
