// All runs as the server tells of them: a snapshot, then what has changed, over one connection.

const HIDDEN_MILLISECONDS = 10_000;
const FINAL = new Set(["SUCCEEDED", "FAILED", "STOPPED"]);

/** Keeps the runs by job, and dispatches `change` with `jobs` (a Set, or null for all) and `connection`. */
class Live extends EventTarget {
  runs = new Map();
  isConnected = false;
  deadLetters = 0;
  #source = null;
  #clockAhead = 0;
  #hidden = null;

  /** Connect, and give the connection up while nobody sees the page: browsers have six for a server. */
  start() {
    this.#open();
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.#hidden);
      if (document.hidden) this.#hidden = setTimeout(() => this.#close(), HIDDEN_MILLISECONDS);
      else if (this.#source === null) this.#open();
    });
  }

  /** The server's time, in seconds. */
  now() {
    return Date.now() / 1000 + this.#clockAhead;
  }

  #open() {
    this.#source = new EventSource("/api/events");
    this.#source.addEventListener("snapshot", (event) => {
      const content = JSON.parse(event.data);
      this.runs = new Map(Object.entries(content.runs));
      this.#take(content, null);
    });
    this.#source.addEventListener("changes", (event) => {
      const content = JSON.parse(event.data);
      const jobs = new Set();
      for (const [job, change] of Object.entries(content.runs)) {
        jobs.add(job);
        if (change === null) this.runs.delete(job);
        else this.runs.set(job, { ...this.runs.get(job), ...change });
      }
      this.#take(content, jobs);
    });
    this.#source.addEventListener("error", () => {
      this.#setConnected(false);
      // A browser does not try again after an answer such as 401.
      if (this.#source?.readyState === EventSource.CLOSED) {
        this.#close();
        setTimeout(() => this.#source ?? this.#open(), 3000);
      }
    });
  }

  #close() {
    this.#source?.close();
    this.#source = null;
    this.#setConnected(false);
  }

  #take(content, jobs) {
    this.#clockAhead = content.now - Date.now() / 1000;
    if (this.deadLetters !== content.dead_letters) {
      this.deadLetters = content.dead_letters;
      this.dispatchEvent(new Event("letters"));
    }
    this.#setConnected(content.connected);
    this.dispatchEvent(new CustomEvent("change", { detail: jobs }));
  }

  #setConnected(isConnected) {
    if (this.isConnected !== isConnected) {
      this.isConnected = isConnected;
      this.dispatchEvent(new Event("connection"));
    }
  }
}

export const live = new Live();

/** Whether a run has ended. */
export function hasEnded(run) {
  return FINAL.has(run.status);
}
