// One run: where it stands, its steps on a time line, its failed tasks, and its log.
import { act, actionButton, ask, h, setText } from "/static/dom.js";
import { clockTime, dateTime, duration, hasWords, statusName, t } from "/static/i18n.js";
import { hasEnded, live } from "/static/live.js";
import { LogPanel } from "/static/log.js";

const SECONDS_BETWEEN_FAILURES = 5;

export function showRun(main, job) {
  const path = `/api/runs/${encodeURIComponent(job)}`;
  let run = live.runs.get(job) ?? {};
  let steps = [];
  let asked = 0;
  const status = h("span", { class: "status" });
  const facts = h("dl", { class: "facts" });
  const bar = h("progress", { max: 100, "aria-label": t("progressOf", { job }) });
  const percent = h("span", { class: "percent" });
  const error = h("p", { class: "problem" });
  const stop = actionButton(t("stop"), t("reallyStop"), async () => {
    await act(`${path}/stop`);
    return t("stopSent");
  });
  const timeline = h("ol", { class: "timeline" });
  const noSteps = h("p", { class: "note" }, t("noSteps"));
  const parts = h("ul", { class: "parts" });
  const failures = h("ul", { class: "failures", tabindex: "0", "aria-label": t("failures") });
  const shownOf = h("p", { class: "count" });
  const retry = retryForm(path);
  const failed = h("section", { hidden: true }, h("h2", {}, t("failures")), retry, shownOf, failures);
  const log = new LogPanel(job);
  main.append(
    h("p", {}, h("a", { href: "#/runs" }, t("backToRuns"))),
    h("h1", {}, `${t("openJob")} ${job} `, status),
    h("div", { class: "bar wide" }, bar, percent, stop),
    error, facts,
    h("section", {}, h("h2", {}, t("timeline")), timeline, noSteps, parts),
    failed, log.element);

  function showFacts() {
    const waiting = run.waiting_for
      && [t("waitsFor", { what: run.waiting_for }), run.waiting_until && t("until", { time: clockTime(run.waiting_until) }), run.message]
        .filter(Boolean).join(" · ");
    const until = hasEnded(run) ? run.updated : live.now();
    const rows = {
      [t("plugin")]: run.plugin, [t("action")]: run.action, [t("step")]: run.step, [t("waiting")]: waiting,
      [t("progress")]: run.total ? t("tasks", { done: (run.success ?? 0) + (run.failed ?? 0), total: run.total })
        + (run.failed ? `, ${t("failedTasks", { count: run.failed })}` : "") : "",
      [t("started")]: run.started ? `${dateTime(run.started)} · ${t(hasEnded(run) ? "took" : "since", { time: duration(until - run.started) })}` : "",
      "": run.left != null && !hasEnded(run) ? t("left", { time: duration(run.left) }) : "",
    };
    const wanted = Object.entries(rows).filter(([, value]) => value);
    if (facts.children.length !== wanted.length) {
      facts.replaceChildren(...wanted.map(() => h("div", {}, h("dt"), h("dd"))));
    }
    wanted.forEach(([name, value], index) => {
      setText(facts.children[index].firstChild, name || t("time"));
      setText(facts.children[index].lastChild, value);
    });
    setText(status, statusName(run.status));
    status.dataset.status = run.status ?? "";
    bar.value = run.overall ?? 0;
    setText(percent, `${Math.round(run.overall ?? 0)} %`);
    setText(error, run.status === "FAILED" ? run.error ?? "" : "");
    stop.hidden = hasEnded(run) || !run.status;
  }

  /** Each step as a bar whose length is its share of the time. When a worker of an older release began one is not known. */
  function showSteps() {
    noSteps.hidden = steps.length > 0;
    const end = hasEnded(run) ? run.updated : live.now();
    const begin = steps.find((step) => step.since !== null)?.since ?? end;
    const whole = Math.max(end - begin, 1);
    while (timeline.children.length < steps.length) {
      timeline.append(h("li", {}, h("span", { class: "name" }), h("span", { class: "track" }, h("span", { class: "span" })), h("span", { class: "took" })));
    }
    steps.forEach((step, index) => {
      const [name, track, took] = timeline.children[index].children;
      const since = step.since ?? begin;
      const until = index + 1 < steps.length ? steps[index + 1].since : end;
      const seconds = Math.max((until ?? since) - since, 0);
      setText(name, step.name);
      track.firstChild.hidden = step.since === null;
      track.firstChild.style.marginInlineStart = `${(100 * (since - begin)) / whole}%`;
      track.firstChild.style.width = `max(${(100 * seconds) / whole}%, 3px)`;
      const time = step.since === null ? t("timeUnknown") : clockTime(since);
      setText(took, step.since === null || until === null ? time : `${time} · ${duration(seconds)}`);
    });
  }

  function showParts(progress) {
    parts.replaceChildren(...progress.map(({ name, percent: value }) =>
      h("li", {}, h("span", { class: "name" }, name),
        h("progress", { max: 100, value, "aria-label": name }), h("span", { class: "percent" }, `${Math.round(value)} %`))));
  }

  async function look() {
    asked = live.now();
    try {
      const found = await ask(path);
      if (!main.contains(facts)) return;
      run = { ...found.values, ...live.runs.get(job) };
      if (found.steps.length >= steps.length) steps = found.steps;
      showParts(found.progress);
      failures.replaceChildren(...found.failures.map((failure) =>
        h("li", {}, h("b", {}, `${t("task")} ${failure.task}`), " ", failure.error ?? t("errorExpired"))));
      setText(shownOf, found.failures.length < run.failed ? t("failuresShown", { shown: found.failures.length, all: run.failed }) : "");
      retry.hidden = !found.is_retryable;
      failed.hidden = found.failures.length === 0 && !found.is_retryable;
      showFacts();
      showSteps();
    } catch {
      if (!live.runs.has(job)) setText(error, t("unknownRun", { job }));
    }
  }

  function change(event) {
    const now = live.runs.get(job);
    if (!now || (event.detail && !event.detail.has(job))) return;
    const before = run;
    run = { ...run, ...now };
    for (const part of parts.children) {
      if (part.firstChild.textContent === run.progress_step) {
        part.children[1].value = run.percent;
        setText(part.children[2], `${Math.round(run.percent)} %`);
      }
    }
    showFacts();
    showSteps();
    // What is not in the changes: the errors of failed tasks, and when steps began.
    const isNew = hasEnded(run) !== hasEnded(before) || run.step !== before.step || !parts.children.length;
    if (isNew || (run.failed !== before.failed && live.now() - asked > SECONDS_BETWEEN_FAILURES)) look();
  }

  const ticking = setInterval(() => {
    if (!run.status || hasEnded(run)) return;
    showFacts();
    showSteps();
  }, 1000);
  live.addEventListener("change", change);
  showFacts();
  look();
  log.start();
  return () => {
    clearInterval(ticking);
    live.removeEventListener("change", change);
    log.stop();
  };
}

/** Asks for the number of the job that annotates the failed tasks and for its options, and then says what came of it. */
function retryForm(path) {
  const job = h("input", { id: "new-job", required: true, autocomplete: "off", maxlength: 100, "aria-describedby": "retry-hint" });
  const plugin = h("input", { id: "retry-plugin", autocomplete: "off", maxlength: 200, placeholder: t("sameRelease") });
  const skipAnnotated = h("input", { type: "checkbox", id: "retry-skip" });
  const dryRun = h("input", { type: "checkbox", id: "retry-dry" });
  const priority = h("input", { id: "retry-priority", type: "number", min: 0, max: 9, "aria-describedby": "retry-priority-hint" });
  const said = h("p", { class: "said", role: "status" });
  let isSending = false;
  const send = async (event) => {
    event.preventDefault();
    if (isSending) return;
    isSending = true;
    const number = job.value.trim();
    const options = {
      plugin: plugin.value.trim() || null, skip_annotated: skipAnnotated.checked, dry_run: dryRun.checked,
      priority: priority.value === "" ? null : Number(priority.value),
    };
    try {
      const sent = await act(`${path}/retry`, { new_job: number, ...options });
      const words = t(dryRun.checked ? "retriedDry" : "retried");
      said.replaceChildren(`${words} `, h("a", { href: `#/runs/${encodeURIComponent(sent.job)}` }, `${t("openJob")} ${sent.job}`));
      job.value = "";
    } catch (error) {
      const key = `retry_${error.problem}`;
      setText(said, hasWords(key) ? t(key, { job: number, why: error.message }) : error.message);
    }
    isSending = false;
  };
  return h("form", { class: "retry", hidden: true, onsubmit: send },
    h("div", { class: "filters" },
      h("label", { for: "new-job" }, t("newJob")), job,
      h("label", { for: "retry-plugin" }, t("retryRelease")), plugin,
      h("label", { for: "retry-priority" }, t("priority")), priority,
      h("label", { class: "check", for: "retry-skip" }, skipAnnotated, t("skipAnnotated")),
      h("label", { class: "check", for: "retry-dry" }, dryRun, t("dryRun")),
      h("button", {}, t("retry"))),
    h("p", { class: "note", id: "retry-hint" }, t("retryHint")),
    h("p", { class: "note", id: "retry-priority-hint" }, t("priorityHint")), said);
}
