// The applications on Ray Serve, as the agents show them.
import { ask, h, setText } from "/static/dom.js";
import { t } from "/static/i18n.js";
import { every } from "/static/poll.js";

const GOOD = new Set(["RUNNING"]);
const BAD = new Set(["DEPLOY_FAILED", "UNHEALTHY", "UNAVAILABLE"]);

export function showDeployments(main) {
  const note = h("p", { class: "note", role: "status" }, t("loading"));
  const list = h("ul", { class: "cards" });
  main.append(h("h1", {}, t("deployments")), note, list);
  return every(5, async () => {
    try {
      const { deployments, problem } = await ask("/api/deployments");
      setText(note, problem || (deployments.length ? "" : t("noDeployments")));
      list.replaceChildren(...deployments.map(card));
    } catch (error) {
      setText(note, error.message);
    }
  });
}

function card(each) {
  const kind = GOOD.has(each.status) ? "SUCCEEDED" : BAD.has(each.status) ? "FAILED" : "RUNNING";
  return h("li", { class: "card" },
    h("h2", {}, each.name, " ", h("span", { class: "status", "data-status": kind }, each.status)),
    h("dl", { class: "facts" },
      fact(t("replicas"), `${each.running} / ${each.wanted}`),
      each.route ? fact(t("route"), each.route) : null,
      each.agent ? fact(t("agent"), each.agent) : null),
    each.message ? h("p", { class: "text" }, each.message) : null);
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}
