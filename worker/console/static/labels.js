// The images that a demo has labelled, each with its label.
import { ask, h, setText } from "/static/dom.js";
import { t } from "/static/i18n.js";
import { every } from "/static/poll.js";

export function showLabels(main) {
  const note = h("p", { class: "note", role: "status" }, t("loading"));
  const groups = h("div", {});
  let shown = 0;
  main.append(h("h1", {}, t("labels")), note, groups);
  return every(5, async () => {
    try {
      const runs = await ask("/api/samples");
      setText(note, runs.length ? "" : t("noLabels"));
      if (runs.length !== shown) groups.replaceChildren(...runs.map(group));
      shown = runs.length;
    } catch (error) {
      setText(note, error.message);
    }
  });
}

function group(run) {
  return h("section", {},
    h("h2", {}, h("a", { href: `#/runs/${encodeURIComponent(run.job)}` }, `${t("job")} ${run.job}`), ` · ${run.method}`),
    h("ul", { class: "samples" }, ...run.samples.map(({ image, label, truth }) => {
      const words = label === truth ? String(label) : t("wrongLabel", { label: label ?? "–", truth });
      return h("li", { class: label === truth ? "" : "failed" },
        h("img", { src: `/samples/${encodeURIComponent(image)}`, width: 48, height: 48, loading: "lazy", alt: "" }),
        h("span", {}, words));
    })));
}
