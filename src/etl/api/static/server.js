// One server: how it is, and what an operator can do: hold, release, try now, check.

import { h } from "./dom.js";
import { bytes, number, percent, strange, time } from "./format.js";
import { jobTable } from "./find.js";
import { facts } from "./letters.js";
import { query } from "./net.js";
import { flight, serverState } from "./now.js";
import { act, choice, empty, field, link, route, section, sign, table, trouble } from "./parts.js";
import { t } from "./texts.js";

const CHECK_MS = 500;
const ENDS = { never: 0, "1h": 3600, "8h": 28_800, "24h": 86_400 };

export const serverPage = {
  refreshes: true,
  keeps: ["check", "remark", "problem"],
  async load(app, _given, name) {
    const [server, causes, jobs] = await Promise.all([
      app.ask(`/pool/servers/${encodeURIComponent(name)}`),
      app.ask(`/dead-letters/causes${query({ server: name })}`),
      app.ask(`/jobs${query({ server: name, state: ["queued", "waiting", "running"], limit: 20 })}`),
    ]);
    return { server, causes, jobs, check: null, remark: null, problem: null };
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
          : act(app.me, t("hold"), () => askHold(app, server.name), { kind: "main" }),
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
      section("flight", t("its-flight"), flight(flying)),
      section("errors", t("last-errors"), causes(view.causes.items, name)),
      section("jobs", t("its-jobs"), jobTable(view.jobs.items)),
    ];
  },
};

function causes(items, name) {
  if (!items.length) return empty(t("causes-empty"));
  return table(
    t("last-errors"),
    [
      [t("code"), (one) => h("code", {}, strange(one.code))],
      [t("folder"), (one) => strange(one.folder)],
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

function askHold(app, name) {
  const form = { ends: "never" };
  app.confirm({
    title: t("hold-title", strange(name)),
    text: t("hold-text"),
    label: t("hold"),
    needsReason: true,
    more: () => field(t("ends"), choice(form.ends, Object.keys(ENDS).map((one) => [one, t(`ends-${one}`)]), (value) => (form.ends = value))),
    run: (reason) => {
      const until = ENDS[form.ends] ? new Date(Date.now() + ENDS[form.ends] * 1000).toISOString() : null;
      return app.ask(`/holds/server/${encodeURIComponent(name)}`, { method: "PUT", body: { reason, until } });
    },
  });
}
