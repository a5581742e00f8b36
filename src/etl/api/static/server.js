// One server: how it is, and what an operator can do: hold, release, try now, check.

import { h } from "./dom.js";
import { age, brief, bytes, clockOf, now, number, percent, strange, time } from "./format.js";
import { jobTable } from "./find.js";
import { facts } from "./letters.js";
import { query } from "./net.js";
import { flight, outageBars, serverState } from "./now.js";
import { act, askHold, empty, link, route, section, sign, table, trouble } from "./parts.js";
import { t } from "./texts.js";

const CHECK_MS = 500;

export const serverPage = {
  refreshes: true,
  keeps: ["check", "remark", "problem"],
  async load(app, _given, name) {
    const [server, hour, causes, jobs] = await Promise.all([
      app.ask(`/pool/servers/${encodeURIComponent(name)}`),
      app.ask(`/pool/servers/${encodeURIComponent(name)}/hour`),
      app.ask(`/dead-letters/causes${query({ server: name })}`),
      app.ask(`/jobs${query({ server: name, state: ["queued", "waiting", "running"], limit: 20 })}`),
    ]);
    return { server, hour, causes, jobs, check: null, remark: null, problem: null };
  },
  show(app, view, _given, name) {
    const server = (app.feed.snapshots.servers?.items ?? []).find((one) => one.name === view.server.name) ?? view.server;
    const holds = app.feed.snapshots.holds?.items ?? [];
    const held = holds.find((one) => one.what === "server" && one.name.toUpperCase() === server.name.toUpperCase());
    const path = encodeURIComponent(server.name);
    const concerns = (text) => text.toUpperCase().startsWith(`${server.name.toUpperCase()}:`);
    const flying = (app.feed.snapshots.transfers?.items ?? []).filter((one) => concerns(one.source) || concerns(one.destination));
    return [
      h("h1", {}, t("server-title", strange(server.name))),
      h(
        "div",
        { class: "buttons" },
        held
          ? act(app.me, t("release"), () => attempt(app, view, () => app.ask(`/holds/server/${path}`, { method: "DELETE" })), { kind: "main" })
          : act(app.me, t("hold"), () => askHold(app, "server", server.name), { kind: "main" }),
        act(app.me, t("try-now"), () => attempt(app, view, () => app.ask(`/pool/servers/${path}/try`, { method: "POST", body: { reason: "" } }), "try-told")),
        act(app.me, t("check"), () => check(app, view, path), { disabled: view.check?.state === "running" }),
      ),
      held &&
        h("p", { class: "held" }, sign("warn", t("hold-told", strange(held.author), strange(held.reason))), " · ", time(held.at), held.until && [" · ", t("hold-until", time(held.until))]),
      h("div", { "aria-live": "polite" }, view.remark && h("p", {}, view.remark), checkTold(view.check)),
      trouble(view.problem),
      facts([
        [t("state"), serverState(server)],
        [t("error"), server.error && [h("code", {}, strange(server.error.code)), " ", strange(server.error.text)]],
        [t("jobs-rate"), number(server.jobs_per_second, 1)],
        [t("bytes-rate"), bytes(server.bytes_per_second)],
        [t("failed"), server.error_share === null ? "–" : percent(server.error_share)],
        [t("round-trip"), server.round_trip_seconds === null ? "–" : `${number(server.round_trip_seconds * 1000, 1)}\u00a0ms`],
        [t("sessions"), `${number(server.sessions.open)} / ${number(server.sessions.limit)}`],
        [t("waiting"), number(server.waiting + server.deferred)],
      ]),
      section("outages", t("outages"), outages(app.feed.snapshots.stats?.items, server.name)),
      section("hour", t("hour"), hourGraphs(view.hour.items)),
      section("flight", t("its-flight"), flight(flying)),
      section("errors", t("last-errors"), causes(view.causes.items, name)),
      section("jobs", t("its-jobs"), jobTable(view.jobs.items)),
    ];
  },
};

// The outages of the last day as a bar, and as a table.
function outages(stats, name) {
  if (!stats) return empty(t("loading"));
  const mine = stats.outages.filter((one) => one.server === name.toUpperCase());
  if (!mine.length) return empty(t("outages-empty"));
  const { timeline } = stats;
  const marks = timeline.filter((_, at) => at % 24 === 0).map((column) => h("span", { key: column.at }, clockOf(column.at)));
  const seconds = (one) => (Date.parse(one.ended_at) - Date.parse(one.began_at)) / 1000;
  return [
    outageBars(timeline, mine, false),
    h("div", { class: "axis number", "aria-hidden": "true" }, marks, h("span", { key: "now" }, t("just-now"))),
    h(
      "details",
      {},
      h("summary", {}, t("as-table")),
      table(
        t("outages"),
        [
          [t("began"), (one) => time(one.began_at)],
          [t("last-down"), (one) => time(one.ended_at)],
          [t("duration"), (one) => age(seconds(one)), "number"],
        ],
        mine,
        (one) => one.began_at,
      ),
    ),
  ];
}

const GRAPHS = [
  ["jobs", "jobs-minute", (one) => one.jobs, (value) => number(value, 1)],
  ["bytes", "bytes-minute", (one) => one.bytes, bytes],
  ["failed", "failed-minute", (one) => one.failed, (value) => number(value, 1)],
  ["trip", "round-trip", (one) => (one.round_trip_seconds ?? 0) * 1000, (value) => `${number(value, 1)}\u00a0ms`],
];
const MINUTES = 60;

// Four small graphs of the same hour, each with its highest value in words; the numbers are in a table below.
function hourGraphs(items) {
  if (!items.length) return empty(t("hour-empty"));
  const minute = (iso) => Math.floor(Date.parse(iso) / 60_000);
  const first = Math.floor(now() / 60_000) - MINUTES + 1;
  const told = (most, words) => (most > 0 ? t("at-most", words(most)) : "–");
  const graphs = GRAPHS.map(([name, label, value, words]) => {
    const most = Math.max(...items.map(value));
    const bars = items.map((one) => {
      const height = most > 0 ? (value(one) / most) * 40 : 0;
      const x = (minute(one.at) - first) * 10;
      return [
        one.down > 0 && h("rect", { key: `down ${one.at}`, class: "outage", x, y: 0, width: 10, height: 44 }),
        height > 0 && h("rect", { key: one.at, class: name === "failed" ? "failed" : "done", x: x + 1, y: 44 - Math.max(1, height), width: 8, height: Math.max(1, height) }),
      ];
    });
    return h(
      "figure",
      { key: name },
      h("figcaption", {}, t(label), " ", h("span", { class: "number hint" }, told(most, words))),
      h("svg", { class: "hour", viewBox: `0 0 ${MINUTES * 10} 44`, preserveAspectRatio: "none", role: "img", "aria-label": `${t(label)}: ${told(most, words)}` }, bars),
      h("div", { class: "axis number", "aria-hidden": "true" }, h("span", {}, t("ago", age(3600))), h("span", {}, t("just-now"))),
    );
  });
  return [
    h("div", { class: "graphs" }, graphs),
    items.some((one) => one.down > 0) && h("p", { class: "hint" }, sign("bad", t("hour-down"))),
    h(
      "details",
      {},
      h("summary", {}, t("as-table")),
      table(
        t("hour"),
        [[t("at"), (one) => clockOf(one.at)], ...GRAPHS.map(([, label, value, words]) => [t(label), (one) => words(value(one)), "number"])],
        items.toReversed(),
        (one) => one.at,
      ),
    ),
  ];
}

function causes(items, name) {
  if (!items.length) return empty(t("causes-empty"));
  return table(
    t("last-errors"),
    [
      [t("code"), (one) => h("code", {}, strange(one.code))],
      [t("folder"), (one) => brief(one.folder)],
      [t("count"), (one) => link(route(["letters"], { code: one.code, server: name }), {}, number(one.count)), "number"],
      [t("last"), (one) => time(one.last_at)],
    ],
    items,
    (one) => `${one.code} ${one.source} ${one.destination} ${one.folder}`,
  );
}

async function attempt(app, view, run, remark) {
  view.problem = view.remark = null;
  try {
    await run();
    view.remark = remark ? t(remark) : null;
  } catch (problem) {
    view.problem = problem;
  }
  app.draw();
}

async function check(app, view, path) {
  view.check = { state: "running" };
  await attempt(app, view, async () => {
    view.check = await app.ask(`/pool/servers/${path}/check`, { method: "POST" });
    while (view.check.state === "running" && app.view === view) {
      app.draw();
      await new Promise((resolve) => setTimeout(resolve, CHECK_MS));
      view.check = await app.ask(`/pool/servers/${path}/checks/${view.check.id}`);
    }
  });
  if (view.problem) view.check = null;
  app.draw();
}

function checkTold(told) {
  if (!told) return null;
  if (told.state === "running") return h("p", {}, sign("busy", t("check-running")));
  const { ok, failed, error, ms } = told.result;
  const steps = Object.entries(ms).map(([step, took]) => `${step} ${number(took, 1)}\u00a0ms`);
  return h("p", { class: "checked" }, t("check-done"), ": ", ok ? sign("good", t("check-ok")) : sign("bad", strange(failed), ": ", strange(error)), steps.length > 0 && ` (${steps.join(", ")})`);
}
