// Elements without markup: whatever a text holds, it stays text.

/**
 * Make an element.
 * @param {string} tag
 * @param {Object} attributes `class`, `on…` handlers, properties such as `value`, else attributes; null is left out
 * @param {...(Node|string|number|null)} children texts become text nodes
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map(asNode));
  return element;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/** Set the text of an element, if it is another one: what does not change costs no layout. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A text with each occurrence of `search` marked. */
export function marked(text, search) {
  if (!search) return [text];
  const parts = [];
  const lower = text.toLowerCase();
  let at = 0;
  // Some characters have another length in lower case; then nothing is marked.
  if (lower.length !== text.length) return [text];
  for (let found = lower.indexOf(search); found >= 0; found = lower.indexOf(search, at)) {
    parts.push(text.slice(at, found), h("mark", {}, text.slice(found, found + search.length)));
    at = found + search.length;
  }
  parts.push(text.slice(at));
  return parts;
}

/** Ask the server; raises an Error with its reason, and with the server's name of the `problem` where it has one. */
export async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  if (answer.status === 401) location.assign("/login");
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(body.detail ?? `HTTP ${answer.status}`), { problem: body.problem });
  return body;
}

/** An action: a POST that other sites' pages cannot send; with `content` as JSON where there is some. */
export function act(path, content) {
  const body = content === undefined ? undefined : JSON.stringify(content);
  return ask(path, { method: "POST", headers: { "X-Synapse-Console": "1" }, body });
}

/**
 * A button that asks once more before it acts, and then says what came of it.
 * @param {string} label what it does
 * @param {string} question what it says when it was pressed once
 * @param {function(): Promise<string>} action returns what is to be said
 */
export function actionButton(label, question, action, describedBy = "") {
  const said = h("span", { class: "said", role: "status" });
  const name = describedBy ? `${label} ${describedBy}` : label;
  const button = h("button", { type: "button", "aria-label": name }, label);
  let armed = null;
  const disarm = () => {
    clearTimeout(armed);
    armed = null;
    button.classList.remove("armed");
    setText(button, label);
    button.setAttribute("aria-label", name);
  };
  button.addEventListener("click", async () => {
    if (armed === null) {
      armed = setTimeout(disarm, 5000);
      button.classList.add("armed");
      setText(button, question);
      button.setAttribute("aria-label", describedBy ? `${question} ${describedBy}` : question);
      return;
    }
    disarm();
    button.disabled = true;
    try {
      setText(said, await action());
    } catch (error) {
      setText(said, error.message);
      button.disabled = false;
    }
  });
  return h("span", { class: "action" }, button, said);
}
