// The frame of the page: sections, connection, language; and which view is shown for an address.
import { act, h, setText } from "/static/dom.js";
import { LANGUAGE_COOKIE, language, t } from "/static/i18n.js";
import { live } from "/static/live.js";
import { showDeployments } from "/static/deployments.js";
import { showEnded } from "/static/ended.js";
import { showLabels } from "/static/labels.js";
import { showLetters } from "/static/letters.js";
import { showQueues } from "/static/queues.js";
import { showRun } from "/static/run.js";
import { showRuns } from "/static/runs.js";
import { showWaiting } from "/static/waiting.js";

const SECTIONS = { runs: showRuns, ended: showEnded, waiting: showWaiting, deployments: showDeployments, letters: showLetters, queues: showQueues, labels: showLabels };
const main = document.getElementById("main");
let leave = () => {};

/** Views fill `main` and return what is to be done when another one is shown. */
function route() {
  const [section, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const name = section in SECTIONS ? section : "runs";
  leave();
  main.replaceChildren();
  if (name === "runs" && rest.length && rest[0]) {
    const job = decodeURIComponent(rest[0]);
    document.title = `${job} · synapse-worker`;
    leave = showRun(main, job);
  } else {
    document.title = `${t(name)} · synapse-worker`;
    leave = SECTIONS[name](main);
  }
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.section === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function header() {
  const status = h("span", { class: "connection", role: "status" });
  const showConnection = () => {
    setText(status, t(live.isConnected ? "connected" : "disconnected"));
    status.classList.toggle("lost", !live.isConnected);
  };
  live.addEventListener("connection", showConnection);
  showConnection();
  const links = Object.keys(SECTIONS).map((name) =>
    h("a", { href: `#/${name}`, "data-section": name, hidden: name === "labels" }, t(name)));
  const other = language === "ko" ? "en" : "ko";
  const speak = () => {
    document.cookie = `${LANGUAGE_COOKIE}=${other}; path=/; max-age=31536000; samesite=strict`;
    location.reload();
  };
  document.getElementById("header").append(
    h("span", { class: "brand" }, "synapse-worker"),
    h("nav", { "aria-label": t("menu") }, ...links),
    status,
    h("button", { type: "button", class: "plain", lang: other, title: t("languageHint"), onclick: speak }, t("language")),
  );
  fetch("/api/session").then((answer) => answer.json()).then((session) => {
    // A demo has labelled images to show.
    document.querySelector("nav [data-section=labels]").hidden = !session.samples;
    if (!session.token) return;
    const logOut = () => act("/logout").then(() => location.assign("/login"));
    document.getElementById("header").append(
      h("button", { type: "button", class: "plain", onclick: logOut }, t("logOut")));
  });
}

setText(document.getElementById("skip"), t("skip"));
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
header();
window.addEventListener("hashchange", () => {
  route();
  main.focus();
});
live.start();
route();
