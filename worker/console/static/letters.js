// Messages that could not be accepted, and what to do about each.
import { act, actionButton, ask, h, setText } from "/static/dom.js";
import { dateTime, t } from "/static/i18n.js";
import { live } from "/static/live.js";

export function showLetters(main) {
  const note = h("p", { class: "note", role: "status" }, t("loading"));
  const list = h("ul", { class: "cards" });
  const cards = new Map();
  main.append(h("h1", {}, t("letters")), note, list);

  async function look() {
    try {
      const { count, letters } = await ask("/api/dead-letters");
      setText(note, letters.length ? t("lettersShown", { shown: letters.length, all: count }) : t("noLetters"));
      const wanted = letters.map((letter) => cards.get(letter.id) ?? card(letter));
      letters.forEach((letter, index) => cards.set(letter.id, wanted[index]));
      if (wanted.some((element, index) => list.children[index] !== element)) list.replaceChildren(...wanted);
    } catch (error) {
      setText(note, error.message);
    }
  }

  live.addEventListener("letters", look);
  look();
  return () => live.removeEventListener("letters", look);
}

function card(letter) {
  const path = `/api/dead-letters/${encodeURIComponent(letter.id)}`;
  return h("li", { class: "card" },
    h("h2", {}, letter.task || "?", letter.job ? ` · ${t("job")} ${letter.job}` : ""),
    h("p", { class: "text problem" }, letter.reason),
    h("p", { class: "note" }, `${dateTime(letter.time)} · ${letter.id}`),
    h("p", {},
      actionButton(t("replay"), t("reallyReplay"), async () => {
        await act(`${path}/replay`);
        return t("replayed");
      }, letter.id),
      actionButton(t("drop"), t("reallyDrop"), async () => {
        await act(`${path}/drop`);
        return t("dropped");
      }, letter.id)));
}
