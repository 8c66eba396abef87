// The log of a run as it comes, with a search and a filter by level.
import { h, marked, setText } from "/static/dom.js";
import { clockTime, t } from "/static/i18n.js";

const MAX_SHOWN = 2000;
const MAX_KEPT = 60_000;
const LEVELS = ["info", "warning", "error"];

export class LogPanel {
  #lines = [];
  #source = null;
  #onVisibility = () => this.#visibility();
  #isOver = false;

  constructor(job) {
    this.path = `/api/runs/${encodeURIComponent(job)}/log`;
    const filter = () => this.#render();
    this.search = h("input", { type: "search", id: "search-log", oninput: filter });
    this.level = h("select", { id: "level", onchange: filter },
      h("option", { value: "" }, t("all")), ...LEVELS.map((level) => h("option", { value: level }, level)));
    this.follow = h("input", { type: "checkbox", id: "follow", checked: true });
    this.whole = h("button", { type: "button", hidden: true, onclick: () => this.start("0") }, t("wholeLog"));
    this.count = h("p", { class: "count" }, t("noLines"));
    this.list = h("ol", { class: "log", tabindex: "0", "aria-label": t("log") });
    this.end = h("p", { class: "note", role: "status" });
    // Who scrolls up reads; the log follows again when its end is reached.
    this.list.addEventListener("scroll", () => {
      this.follow.checked = this.list.scrollTop + this.list.clientHeight >= this.list.scrollHeight - 8;
    });
    this.element = h("section", {}, h("h2", {}, t("log")),
      h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
        h("label", { for: "search-log" }, t("searchLog")), this.search,
        h("label", { for: "level" }, t("level")), this.level,
        h("label", { class: "check", for: "follow" }, this.follow, t("follow")), this.whole),
      this.count, this.list, this.end);
  }

  /** Follow the log: its last lines and what comes, or the whole with `tail` 0. */
  start(tail = "") {
    this.stop();
    this.#lines = [];
    this.list.replaceChildren();
    this.#isOver = false;
    this.#open(`${this.path}${tail && `?tail=${tail}`}`);
    document.addEventListener("visibilitychange", this.#onVisibility);
  }

  stop() {
    this.#source?.close();
    this.#source = null;
    document.removeEventListener("visibilitychange", this.#onVisibility);
  }

  #open(path) {
    this.#source = new EventSource(path);
    this.#source.addEventListener("lines", (event) => this.#add(JSON.parse(event.data)));
    this.#source.addEventListener("end", (event) => {
      this.#source.close();
      this.#isOver = true;
      const { reason } = JSON.parse(event.data);
      setText(this.end, reason === "expired" ? t("logExpired") : t("logEnded", { reason }));
    });
  }

  #visibility() {
    if (document.hidden || this.#isOver) return;
    if (this.#source?.readyState === EventSource.CLOSED) this.start();
  }

  #add(rows) {
    const last = this.#lines.at(-1)?.seq ?? 0;
    const lines = rows.map(([seq, time, source, level, line]) => ({ seq, time, source, level, line }))
      .filter((line) => line.seq > last);
    if (!this.#lines.length && lines.length) this.whole.hidden = lines[0].seq === 1;
    this.#lines.push(...lines);
    this.#lines.splice(0, Math.max(this.#lines.length - MAX_KEPT, 0));
    this.#append(lines.filter((line) => this.#matches(line)));
  }

  #matches(line) {
    const words = this.search.value.toLowerCase();
    return (!this.level.value || line.level === this.level.value) && (!words || line.line.toLowerCase().includes(words));
  }

  #render() {
    this.list.replaceChildren();
    this.#append(this.#lines.filter((line) => this.#matches(line)));
  }

  #append(lines) {
    const words = this.search.value.toLowerCase();
    this.list.append(...lines.slice(-MAX_SHOWN).map((line) => h("li", { "data-level": line.level, value: null },
      h("span", { class: "time" }, clockTime(line.time)), " ",
      h("span", { class: "source" }, line.source), " ",
      h("span", { class: "level" }, line.level === "info" ? "" : line.level), " ",
      h("span", { class: "text" }, ...marked(line.line, words)))));
    while (this.list.children.length > MAX_SHOWN) this.list.firstChild.remove();
    setText(this.count, this.#lines.length
      ? t("lines", { shown: this.list.children.length, all: this.#lines.length }) : t("noLines"));
    if (this.follow.checked) this.list.scrollTop = this.list.scrollHeight;
  }
}
