// The first page: what needs you, the night, transfers in flight, servers, backlog, processes.

import { h } from "./dom.js";
import { age, bytes, clockOf, number, percent, plain, secondsSince, strange, time } from "./format.js";
import { query } from "./net.js";
import { operations } from "./operations.js";
import { act, askHold, bar, count, empty, endOf, ends, hold, jobLink, link, moved, route, section, serverLink, sign, slashed, table, told } from "./parts.js";
import { has, t } from "./texts.js";

const SHOWN = 20; // transfers
const NEEDS = 10;

let order = []; // of the transfers: rows do not jump while somebody reads them

export function nowPage(app) {
  const { summary, stats, transfers, servers, processes, operations: ops } = app.feed.snapshots;
  if (!summary || !stats) return h("p", { class: "empty" }, t("loading"));
  const running = (ops?.items ?? []).filter((one) => one.state === "running" || one.state === "canary");
  return [
    sentence(app, summary.items, stats.items),
    needs(app, summary.items),
    running.length > 0 && section("operations", t("operations"), operations(app, running)),
    night(stats.items),
    section("flight", t("flight"), flight(transfers?.items ?? [], true)),
    section("servers", t("servers"), serverTable(servers?.items ?? [])),
    section("backlog", t("backlog"), backlog(app, summary.items.topics)),
    section("processes", t("processes"), processTiles(app, processes?.items ?? [])),
  ];
}

function sentence(app, summary, stats) {
  if (app.stale) return h("h1", {}, sign("warn", t("not-known")));
  if (!summary.is_well) return h("h1", {}, sign("bad", t("needs-you", number(summary.urgent), summary.urgent)));
  const done = stats.jobs.done ?? 0;
  if (summary.known > 0) return h("h1", {}, sign("good", t("nothing-new", t("files-bytes", number(done), bytes(stats.bytes), done), number(summary.known), summary.known)));
  return h("h1", {}, sign("good", t("all-well", t("files-bytes", number(done), bytes(stats.bytes), done))));
}

function needs(app, summary) {
  const rows = summary.needs.slice(0, NEEDS).map((need) =>
    h(
      "li",
      { key: `${need.kind} ${need.subject}`, class: need.is_urgent ? "urgent" : "known" },
      h(
        "span",
        {},
        sign(need.is_urgent ? "bad" : need.known ? "warn" : "calm", t(`need-${need.kind}`, strange(need.subject))),
        need.since && [" ", t("since", time(need.since))],
        need.jobs > 0 && need.kind !== "dead-letters" && [": ", count("waits", need.jobs)],
        need.detail && [" (", strange(need.detail), ")"],
        need.known && h("div", { class: "hint" }, t("known-by", strange(need.known.author), strange(need.known.reason)), need.known.until && [" · ", t("hold-until", time(need.known.until))]),
      ),
      h(
        "div",
        { class: "buttons" },
        target(need) !== "/now" && link(target(need), { class: "button", "aria-label": `${t("look")}: ${plain(need.subject)}` }, t("look")),
        need.known && act(app.me, t("give-back"), () => giveBack(app, need), { name: need.subject }),
        need.kind === "on-hold" && act(app.me, t("release"), () => app.run(() => app.ask(hold(...held(need)), { method: "DELETE" })), { name: need.subject }),
        need.is_urgent && act(app.me, t("acknowledge"), () => acknowledge(app, need), { name: need.subject }),
      ),
    ),
  );
  return section(
    "needs",
    t("needs"),
    rows.length ? h("ul", { class: "needs" }, rows) : empty(t("needs-nothing")),
    summary.needs.length > NEEDS && h("p", {}, t("needs-more", number(summary.needs.length - NEEDS))),
  );
}

function acknowledge(app, need) {
  const form = { ends: "8h" };
  app.confirm({
    title: t("acknowledge-title", t(`need-${need.kind}`, strange(need.subject))),
    text: t("acknowledge-text"),
    label: t("acknowledge"),
    needsReason: true,
    more: () => ends(form, ["1h", "8h", "24h", "7d"]),
    run: (reason) => app.ask("/needs/acknowledgements", { method: "POST", body: { kind: need.kind, name: need.name, reason, until: endOf(form) } }),
  });
}

const giveBack = (app, { kind, name }) => app.run(() => app.ask(`/needs/acknowledgements${query({ kind, name })}`, { method: "DELETE" }));

// What a hold is about: "server NAME" as server and NAME.
const held = ({ subject }) => [subject.slice(0, subject.indexOf(" ")), subject.slice(subject.indexOf(" ") + 1)];

// Where a need is looked into, and acted on.
function target(need) {
  if (need.kind === "login-refused" || need.kind === "server-down") return route(["servers", need.subject]);
  if (need.kind === "on-hold" && need.subject.startsWith("server ")) return route(["servers", need.subject.slice(7)]);
  if (need.kind === "dead-letters") return "/letters";
  if (need.kind === "backlog-old") return route(["find"], { state: ["queued", "waiting"], range: "all" });
  if (need.kind === "transfer-stalled") return route(["find"], { state: "running" });
  return "/now";
}

function night({ timeline, jobs, outages }) {
  const most = Math.max(1, ...timeline.map((column) => column.done + column.failed));
  const busy = timeline.filter((column) => column.done + column.failed > 0);
  const height = (value) => (value ? Math.max(2, (value / most) * 60) : 0);
  const failed = (jobs.failed ?? 0) + (jobs.discarded ?? 0);
  const ends = (at) => timeline[at + 1]?.at;
  const window = (at) => route(["find"], { since: timeline[at].at, until: ends(at) });
  const words = (column) => t("night-column", clockOf(column.at), number(column.done), number(column.failed), bytes(column.bytes));
  const columns = timeline.map((column, at) => {
    const good = height(column.done);
    const bad = height(column.failed);
    return h(
      "g",
      { key: column.at, class: "column", onclick: () => (location.hash = window(at)) },
      h("title", {}, words(column)),
      h("rect", { class: "whole", x: at * 10, y: 0, width: 10, height: 64 }),
      good > 0 && h("rect", { key: "good", class: "done", x: at * 10 + 1, y: 64 - good - bad, width: 8, height: good }),
      bad > 0 && h("rect", { key: "bad", class: "failed", x: at * 10 + 1, y: 64 - bad, width: 8, height: bad }),
    );
  });
  const marks = timeline.filter((_, at) => at % 24 === 0).map((column) => h("span", { key: column.at }, clockOf(column.at)));
  return section(
    "night",
    t("night"),
    h(
      "svg",
      { class: "night", viewBox: `0 0 ${timeline.length * 10} 64`, preserveAspectRatio: "none", role: "img", "aria-label": t("night-told", number(jobs.done ?? 0), number(failed)) },
      columns,
    ),
    h("div", { class: "axis number", "aria-hidden": "true" }, marks, h("span", { key: "now" }, t("just-now"))),
    outages.length > 0 && outageBars(timeline, outages),
    busy.length === 0
      ? empty(t("night-empty"))
      : h(
          "details",
          {},
          h("summary", {}, t("as-table")),
          table(
            t("night"),
            [
              [t("at"), (column) => link(window(timeline.indexOf(column)), {}, clockOf(column.at))],
              [t("state-done"), (column) => number(column.done), "number"],
              [t("failed"), (column) => number(column.failed), "number"],
              [t("size"), (column) => bytes(column.bytes), "number"],
            ],
            busy.toReversed(),
            (column) => column.at,
          ),
        ),
  );
}

const OUTAGES = 8; // servers, those that were down last

// A bar for each server on the axis of the time line: red while it was down. `names`: without, the server is known.
export function outageBars(timeline, outages, names = true) {
  const first = Date.parse(timeline[0].at);
  const step = Date.parse(timeline[1].at) - first;
  const width = timeline.length * 10;
  const x = (iso) => Math.min(width, Math.max(0, ((Date.parse(iso) - first) / step) * 10));
  const seconds = (one) => (Date.parse(one.ended_at) - Math.max(first, Date.parse(one.began_at))) / 1000;
  const servers = [...new Set(outages.map((one) => one.server))].slice(0, OUTAGES);
  return h(
    "ul",
    { class: "outages" },
    servers.map((name) => {
      const mine = outages.filter((one) => one.server === name);
      const words = t("outage-told", number(mine.length), age(mine.reduce((sum, one) => sum + seconds(one), 0)), mine.length);
      const bars = mine.map((one) =>
        h("rect", { key: one.began_at, class: "outage", x: x(one.began_at), y: 0, width: Math.max(2, x(one.ended_at) - x(one.began_at)), height: 8 }, h("title", {}, `${clockOf(one.began_at)} – ${clockOf(one.ended_at)}`)),
      );
      return h(
        "li",
        { key: name },
        h("span", { class: "hint" }, names && [serverLink(name), ": "], words),
        h("svg", { class: "down", viewBox: `0 0 ${width} 8`, preserveAspectRatio: "none", role: "img", "aria-label": `${plain(name)}: ${words}` }, bars),
      );
    }),
  );
}

// Rows of transfers; `keeps`: rows stay where they are, and new ones come below.
export function flight(items, keeps = false) {
  let rows = items;
  if (keeps) {
    const byPlace = new Map(items.map((one) => [one.place, one]));
    order = order.filter((place) => byPlace.has(place));
    const known = new Set(order);
    order.push(...items.map((one) => one.place).filter((place) => !known.has(place)));
    rows = order.map((place) => byPlace.get(place));
  }
  if (!rows.length) return empty(t("flight-empty"));
  const shown = rows.slice(0, SHOWN);
  const silent = (one) => one.process_state === "silent";
  return [
    table(
      t("flight"),
      [
        [t("file"), (one) => [told(one.source), " ", jobLink(slashed(one.place), t("job"))]],
        [t("to"), (one) => told(one.destination)],
        [t("progress"), (one) => [bar(plain(one.source), one.moved ?? 0, one.size), h("span", { class: "number" }, moved(one.moved ?? 0, one.size))], "wide"],
        [t("rate"), (one) => pace(one), "number"],
        [t("left"), (one) => (one.eta_seconds === undefined || silent(one) ? "–" : age(one.eta_seconds)), "number"],
        [t("attempt"), (one) => number(one.attempt), "number"],
        [t("process"), (one) => (silent(one) ? sign("warn", strange(one.process), " ", t("process-silent", age(one.age_seconds))) : strange(one.process))],
      ],
      shown.map((one) => ({ ...one, class: silent(one) ? "silent" : undefined })),
      (one) => one.place,
    ),
    rows.length > shown.length && h("p", {}, t("flight-more", number(shown.length), number(rows.length))),
  ];
}

function pace(one) {
  if (one.process_state === "silent") return "–";
  if (one.stalled_seconds !== undefined) return sign("warn", t("still-for", age(one.stalled_seconds)));
  if (one.phase !== "streaming") return has(`phase-${one.phase}`) ? t(`phase-${one.phase}`) : one.phase;
  return t("per-second", bytes(one.rate));
}

export function serverState(server) {
  const held = server.held_by && [sign("warn", t("on-hold")), " · "];
  if (server.breaker === "closed") return [held, sign("good", t("up"))];
  return [
    held,
    sign(server.breaker === "open" ? "bad" : "warn", server.breaker === "open" ? t("down") : t("probed")),
    server.since && [" ", time(server.since, "for")],
    server.next_probe_at && secondsSince(server.next_probe_at) < 0 && [", ", t("next-try", time(server.next_probe_at))],
  ];
}

function serverTable(items) {
  if (!items.length) return empty(t("servers-empty"));
  return table(
    t("servers"),
    [
      [t("server"), (one) => serverLink(one.name)],
      [t("state"), serverState],
      [t("jobs-rate"), (one) => number(one.jobs_per_second, 1), "number"],
      [t("bytes-rate"), (one) => bytes(one.bytes_per_second), "number"],
      [t("failed"), (one) => (one.error_share === null ? "–" : percent(one.error_share)), "number"],
      [t("round-trip"), (one) => (one.round_trip_seconds === null ? "–" : `${number(one.round_trip_seconds * 1000, 1)}\u00a0ms`), "number"],
      [t("sessions"), (one) => `${number(one.sessions.open)}\u00a0/\u00a0${number(one.sessions.limit)}`, "number"],
      [
        t("waiting"),
        (one) => link(route(["find"], { q: one.name, state: ["queued", "waiting"], range: "all" }), {}, number(one.waiting + one.deferred)),
        "number",
      ],
    ],
    items,
    (one) => one.name,
  );
}

function backlog(app, topics) {
  if (!topics.length) return empty(t("backlog-empty"));
  const todo = (text) => link(route(["find"], { state: ["queued", "waiting"], range: "all" }), {}, text);
  return table(
    t("backlog"),
    [
      [t("topic"), (one) => [strange(one.topic), " (", strange(one.group), ")"]],
      [t("unfinished"), (one) => todo(number(one.unfinished)), "number"],
      [t("oldest"), (one) => (one.unfinished && one.oldest_at ? time(one.oldest_at, "for") : "–"), "number"],
      [t("jobs-rate"), (one) => number(one.jobs_per_second, 1), "number"],
      [t("clear"), (one) => (one.unfinished && one.clear_seconds !== null ? age(one.clear_seconds) : "–"), "number"],
      [
        t("deferred"),
        (one) => (one.parked && one.next_due_at ? t("deferred-next", number(one.parked), time(one.next_due_at)) : number(one.parked)),
        "number",
      ],
      [t("processes"), (one) => number(one.processes), "number"],
      [t("action"), (one) => act(app.me, t("hold"), () => askHold(app, "topic", one.topic), { kind: "small", name: one.topic })],
    ],
    topics,
    (one) => `${one.topic} ${one.group}`,
  );
}

const PROCESS_MOODS = { running: "good", waiting: "warn", starting: "busy", draining: "warn", stopped: "calm", silent: "bad" };

function processTiles(app, items) {
  if (!items.length) return empty(t("processes-empty"));
  const tiles = items.map((one) =>
    h(
      "li",
      { key: one.key, class: one.state === "silent" ? "tile silent" : "tile", "data-process": one.id, "data-state": one.state },
      h("strong", {}, strange(one.id)),
      sign(PROCESS_MOODS[one.state] ?? "calm", t(`process-${one.state}`, age(one.age_seconds))),
      one.held_by && sign("warn", t("on-hold"), ": ", strange(one.held_by)),
      one.kind === "consumer" && one.state !== "silent" && one.state !== "stopped" && h("span", { class: "number" }, t("lanes", number(one.lanes.busy), number(one.lanes.size))),
      one.version && h("small", {}, strange(one.version)),
      one.kind === "consumer" && ["running", "waiting"].includes(one.state) && act(app.me, t("drain"), () => drain(app, one), { kind: "small", name: one.id }),
    ),
  );
  return h("ul", { class: "tiles" }, tiles);
}

function drain(app, process) {
  app.confirm({
    title: t("drain-title", strange(process.id)),
    text: t("drain-text"),
    label: t("drain"),
    run: (reason) => app.ask(`/pool/processes/${process.key.split("/").map(encodeURIComponent).join("/")}/drain`, { method: "POST", body: { reason } }),
  });
}
