// The queues, and the workers that answer.
import { ask, h, setText } from "/static/dom.js";
import { duration, t } from "/static/i18n.js";
import { every } from "/static/poll.js";

export function showQueues(main) {
  const queueRows = h("tbody");
  const held = h("p", { class: "note", role: "status" }, t("loading"));
  const workerRows = h("tbody");
  const workersNote = h("p", { class: "note", role: "status" }, t("loading"));
  main.append(
    h("h1", {}, t("queues")), held,
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("queues") },
      table([t("queue"), t("waitingMessages"), t("delayed")], queueRows)),
    h("h2", {}, t("workers")), workersNote,
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("workers") },
      table([t("name"), t("queues"), t("threads"), t("uptime")], workerRows)));

  const leaveQueues = every(2, async () => {
    try {
      const found = await ask("/api/queues");
      setText(held, found.held === null ? t("noQueues") : t("held", { count: found.held }));
      queueRows.replaceChildren(...found.queues.map((queue) => row([queue.name, queue.waiting, queue.delayed])));
    } catch (error) {
      setText(held, error.message);
    }
  });
  const leaveWorkers = every(10, async () => {
    try {
      const { workers, problem } = await ask("/api/workers");
      setText(workersNote, problem || (workers.length ? "" : t("noWorkers")));
      workerRows.replaceChildren(...workers.map((worker) => row([
        worker.name, worker.queues.join(", "), worker.threads ?? "", worker.uptime === null ? "" : duration(worker.uptime)])));
    } catch (error) {
      setText(workersNote, error.message);
    }
  });
  return () => {
    leaveQueues();
    leaveWorkers();
  };
}

function table(names, body) {
  return h("table", {}, h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)))), body);
}

function row([name, ...values]) {
  return h("tr", {}, h("th", { scope: "row" }, name), ...values.map((value) => h("td", {}, value)));
}
