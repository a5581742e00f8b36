// Find jobs, and tell one job's whole story.

import { h } from "./dom.js";
import { age, brief, bytes, number, strange, time } from "./format.js";
import { facts, json } from "./letters.js";
import { query } from "./net.js";
import { act, bar, choice, empty, field, file, fromTo, jobLink, letterLink, link, moved, route, section, stateOf, table } from "./parts.js";
import { has, t } from "./texts.js";

const RANGES = ["1h", "24h", "7d", "all"];
const STATES = ["queued", "waiting", "running", "done", "failed", "discarded"];

// What one field may mean, as parameters of the search.
export function meaning(text, servers) {
  const wanted = text.trim();
  const both = /^([^:/\s]+):(\/.*)$/.exec(wanted);
  if (both) return { server: both[1], path: both[2] };
  if (wanted.startsWith("/") || wanted.includes("*")) return { path: wanted };
  if (servers.some((one) => one.name.toUpperCase() === wanted.toUpperCase())) return { server: wanted };
  return wanted ? { job_id: wanted } : {};
}

// TOPIC/PARTITION/OFFSET, or the same with -.
export function placeOf(text) {
  const found = /^([\w.-]+?)[/-](\d+)[/-](\d+)$/.exec(text.trim());
  return found && found.slice(1).join("/");
}

function wantedOf(app, given) {
  const range = given.range ?? "24h";
  const time = given.since ? { since: given.since, until: given.until } : range === "all" ? {} : { since: range };
  return { ...meaning([given.q ?? ""].flat()[0], app.feed.snapshots.servers?.items ?? []), group_id: given.group, state: given.state, code: given.code, ...time };
}

// A message of several files, and its jobs.
const groupRoute = (place) => route(["find"], { group: place, range: "all" });
const asked = (kind, place) => `/${kind}/${place.map(encodeURIComponent).join("/")}`;

export const findPage = {
  async load(app, given) {
    if (!app.feed.snapshots.servers) app.feed.snapshots.servers = await app.ask("/pool/servers");
    const group = given.group ? await app.ask(asked("groups", given.group.split("/"))) : null;
    const page = await app.ask(`/jobs${query(wantedOf(app, given))}`);
    return { page, group, items: page.items, ...this.blank(given) };
  },
  blank: (given) => ({ form: { q: [given.q ?? ""].flat()[0], state: [given.state ?? []].flat(), range: given.range ?? "24h" } }),
  form: findForm,
  show(app, view, given) {
    const { items, page, group } = view;
    return [
      h("h1", {}, group ? t("group-title", strange(group.job_id), number(group.files), group.files) : t("find")),
      group && groupTold(group),
      findForm(app, view),
      given.since && h("p", {}, t("window-from", time(given.since), given.until ? time(given.until) : t("just-now"))),
      section("found", t("found"), jobTable(items), app.pager(view, page, (cursor) => `/jobs${query({ ...wantedOf(app, given), cursor })}`)),
    ];
  },
};

function groupTold(group) {
  const states = Object.entries(group.states).map(([state, count], at) => [at > 0 && " · ", stateOf({ state }), ` ${number(count)}`]);
  const unknown = group.unknown > 0 && [states.length > 0 && " · ", t("group-unknown", number(group.unknown))];
  const ended = group.files - group.unknown - ["queued", "waiting", "running"].reduce((sum, state) => sum + (group.states[state] ?? 0), 0);
  return h("div", {}, bar(t("progress"), ended, group.files), h("p", {}, states, unknown, " · ", bytes(group.bytes)));
}

function findForm(app, { form }) {
  const go = (event) => {
    event?.preventDefault();
    const place = placeOf(form.q);
    if (place && !form.q.includes("*")) app.go(route(["jobs", ...place.split("/")]));
    else app.go(route(["find"], { q: form.q, state: form.state, range: form.range }));
  };
  const state = form.state.length > 1 ? form.state.join() : (form.state[0] ?? "");
  const states = [["", t("any")], ...STATES.map((name) => [name, t(`state-${name}`)]), ["queued,waiting", `${t("state-queued")}, ${t("state-waiting")}`]];
  return h(
    "form",
    { class: "filter", onsubmit: go, role: "search" },
    field(t("find-label"), h("input", { type: "search", id: "find-field", value: form.q, "aria-describedby": "find-hint", oninput: (event) => (form.q = event.target.value) })),
    field(t("state"), choice(state, states, (value) => (form.state = value.split(",").filter(Boolean)))),
    field(t("range"), choice(form.range, RANGES.map((name) => [name, t(`range-${name}`)]), (value) => (form.range = value))),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "main" }, t("find"))),
    h("p", { id: "find-hint", class: "hint" }, t("find-hint")),
  );
}

export function jobTable(items) {
  if (!items.length) return empty(t("found-none"));
  return table(
    t("found"),
    [
      [t("job"), (one) => jobLink(one.place, brief(one.job_id ?? one.place, 60))],
      [t("state"), (one) => [stateOf(one), one.code && [" ", h("code", {}, strange(one.code))]]],
      [t("when"), (one) => time(one.finished_at ?? one.at)],
      [t("file"), fromTo, "wide"],
      [t("size"), (one) => (one.bytes === null ? "–" : bytes(one.bytes)), "number"],
    ],
    items,
    (one) => one.place,
  );
}

export const jobPage = {
  refreshes: true,
  async load(app, _given, ...place) {
    try {
      return await app.ask(asked("jobs", place));
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      const isGroup = await app.ask(asked("groups", place)).then(() => true, () => false);
      if (!isGroup) throw problem;
      location.replace(`#${groupRoute(place.join("/"))}`);
      return new Promise(() => {}); // another page is loaded
    }
  },
  show(app, { job, message, result, events, namesakes }) {
    const flying = (app.feed.snapshots.transfers?.items ?? []).find((one) => one.place === job.place.replace(/\/(\d+)\/(\d+)$/, "-$1-$2"));
    const isOpen = ["queued", "waiting", "running"].includes(job.state);
    const cancel = () =>
      app.confirm({
        title: t("cancel-job"),
        text: t("cancel-text"),
        label: t("cancel-job"),
        run: (reason) => app.ask(`/jobs/${job.place.split("/").map(encodeURIComponent).join("/")}/cancel`, { method: "POST", body: { reason } }),
      });
    return [
      h("h1", {}, t("job-title", strange(job.job_id ?? job.place))),
      isOpen && h("div", { class: "buttons" }, act(app.me, t("cancel-job"), cancel, { kind: "danger" })),
      flying && h("p", {}, bar(t("progress"), flying.moved ?? 0, flying.size), " ", h("span", { class: "number" }, moved(flying.moved ?? 0, flying.size), " · ", t("per-second", bytes(flying.rate)))),
      facts([
        [t("state"), [stateOf(job), job.code && [" ", h("code", {}, strange(job.code))]]],
        [t("error"), job.error && strange(job.error)],
        [t("from"), file(job.source, strange)],
        [t("to"), file(job.destination, strange)],
        [t("size"), job.bytes === null ? null : bytes(job.bytes)],
        [t("duration"), job.duration_seconds === null ? null : age(job.duration_seconds)],
        [t("attempts"), job.attempts === null ? null : number(job.attempts)],
        [t("priority"), job.priority && strange(job.priority)],
        [t("place"), strange(job.place)],
        [t("worker"), job.worker && strange(job.worker)],
        [t("letter"), job.letter && letterLink(job.letter)],
        [t("group"), job.group && link(groupRoute(job.group), {}, strange(job.group))],
      ]),
      section("story", t("story"), h("ol", { class: "story" }, events.map((one, at) => h("li", { key: at }, event(one, job.place))))),
      namesakes.length > 0 && section("namesakes", t("namesakes"), jobTable(namesakes)),
      result && section("result", t("result"), json(result)),
      message && section("message", t("message"), json(message)),
    ];
  },
};

function event(one, here) {
  const word = has(`event-${one.what}`) ? t(`event-${one.what}`) : strange(one.what);
  const place = one.place && one.place !== here && (one.place.includes(":") ? letterLink(one.place) : jobLink(one.place));
  return [one.at && [time(one.at), " "], h("strong", {}, word), one.who && [" · ", strange(one.who)], place && [" · ", place], one.detail && h("div", {}, strange(one.detail))];
}
