// What is asked of the API, and its stream of snapshots: one for all windows of a browser.

import { setClock } from "./format.js";

const KINDS = ["transfers", "servers", "processes", "operations", "holds", "summary", "stats"];
const BEAT_SECONDS = 5; // the stream says something at least that often
export const STALE_SECONDS = 3 * BEAT_SECONDS;
const AGAIN_SECONDS = 2;

export class Problem extends Error {
  constructor(status, told) {
    super(told.detail || told.title || String(status));
    this.status = status;
    this.code = told.code ?? "";
    this.errors = told.errors ?? [];
    this.extra = told.extra ?? {};
  }
}

// Ask, or act with a `body`. Returns the answer; throws Problem, with code "unreachable" where nobody answered.
export async function ask(path, { method = "GET", body, headers = {} } = {}) {
  let answer;
  try {
    answer = await fetch(`/api/v1${path}`, {
      method,
      headers: body === undefined ? headers : { ...headers, "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      redirect: "error",
    });
  } catch {
    throw new Problem(0, { code: "unreachable" });
  }
  setClock(answer.headers.get("date"));
  const text = await answer.text();
  let told = {};
  try {
    told = text ? JSON.parse(text) : {};
  } catch {
    told = {};
  }
  if (!answer.ok) throw new Problem(answer.status, told);
  return told;
}

// A query string of what is given: lists become several parameters, empty ones are left out.
export function query(given) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(given))
    for (const one of [value].flat()) if (one !== undefined && one !== null && one !== "") found.append(name, one);
  const text = found.toString();
  return text ? `?${text}` : "";
}

// The latest snapshots, and when something was heard last. Browsers open six connections to a host at most, so the
// visible windows choose one that listens (a Web Lock) and tells the others (a BroadcastChannel). Where there are no
// locks (plain HTTP from another machine) each window listens for itself. Hidden windows do not listen.
export class Feed {
  constructor(changed, refused) {
    this.changed = changed;
    this.refused = refused;
    this.snapshots = {};
    this.heardAt = null;
    this.madeAt = Date.now();
    this.channel = new BroadcastChannel("etl-feed");
    this.channel.onmessage = ({ data }) => {
      if (data.ask) this.source && this.repeat();
      else this.take(data.kind, data.snapshot);
    };
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
    addEventListener("pagehide", () => this.stop());
    this.start();
  }

  start() {
    if (this.wants || document.hidden) return;
    this.wants = new AbortController();
    this.channel.postMessage({ ask: true });
    if (!navigator.locks) {
      this.listen();
      return;
    }
    const { signal } = this.wants;
    navigator.locks
      .request("etl-feed", { signal }, () => {
        this.listen();
        return new Promise((resolve) => signal.addEventListener("abort", resolve));
      })
      .catch(() => {}); // another window listened until we stopped wanting to
  }

  stop() {
    this.wants?.abort();
    this.wants = null;
    this.source?.close();
    this.source = null;
    clearTimeout(this.again);
  }

  listen() {
    if (!this.wants) return;
    this.source = new EventSource(`/api/v1/events?topics=${KINDS.join(",")}`);
    for (const kind of [...KINDS, "beat"])
      this.source.addEventListener(kind, ({ data }) => {
        const snapshot = JSON.parse(data);
        this.take(kind, snapshot);
        this.channel.postMessage({ kind, snapshot });
      });
    this.source.onerror = () => {
      // It may have been refused, and then never tries again by itself; so we do, once we know that we may.
      this.source?.close();
      clearTimeout(this.again);
      this.again = setTimeout(() => this.retry(), AGAIN_SECONDS * 1000);
    };
  }

  async retry() {
    try {
      await ask("/me");
    } catch (problem) {
      if (problem.status === 401) {
        this.stop();
        this.refused();
        return;
      }
    }
    if (this.wants) this.listen();
  }

  take(kind, snapshot) {
    this.heardAt = Date.now();
    if (kind !== "beat") this.snapshots[kind] = snapshot;
    this.changed();
  }

  repeat() {
    for (const [kind, snapshot] of Object.entries(this.snapshots)) this.channel.postMessage({ kind, snapshot });
  }
}
