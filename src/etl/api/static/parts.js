// Parts that several pages share: tables, links to jobs and servers, words of states, dialogs, buttons of operators.

import { h } from "./dom.js";
import { brief, bytes, now, number, percent, plain, strange } from "./format.js";
import { Problem, query } from "./net.js";
import { t } from "./texts.js";

export const link = (to, props, ...content) => h("a", { ...props, href: `#${to}` }, content);

// A path below #, from parts and a query; each part is encoded.
export const route = (parts, given = {}) => `/${parts.map(encodeURIComponent).join("/")}${query(given)}`;

export const jobLink = (place, content) => link(route(["jobs", ...place.split("/")]), {}, content ?? brief(place));

// PROCESS's name of a place, TOPIC-PARTITION-OFFSET, as the path of a job.
export const slashed = (place) => place.replace(/-(\d+)-(\d+)$/, "/$1/$2");

export const serverLink = (name) => link(route(["servers", name]), {}, strange(name));

export const letterLink = (place) => link(route(["letters", place]), { class: "number" }, place);

// `show`: brief in lists, strange where all of it is wanted.
export const file = ({ server, path }, show = brief) =>
  h("span", { class: "file" }, server ? [serverLink(server), ":"] : null, show(path ?? ""));

// Source and destination of a job; of a message that is none nothing is known.
export const fromTo = ({ source, destination }) => (source.server || destination.server ? [file(source), " → ", file(destination)] : "–");

// "SERVER:/path" as a process tells it.
export function told(text) {
  const at = text.indexOf(":");
  return at > 0 ? file({ server: text.slice(0, at), path: text.slice(at + 1) }) : brief(text);
}

// A state as icon and word: nothing is told by colour alone.
const SIGNS = { good: "✓", bad: "✕", warn: "!", busy: "▸", calm: "○" };
export const sign = (mood, ...content) =>
  h("span", { class: `sign ${mood}` }, h("span", { "aria-hidden": "true" }, SIGNS[mood]), " ", content);

const MOODS = { done: "good", failed: "bad", discarded: "calm", running: "busy", waiting: "warn", queued: "calm" };
export const stateOf = (job) => sign(MOODS[job.state] ?? "calm", t(`state-${job.state}`));

// A table that becomes a list of cards on a narrow screen: each cell then has its column's name before it.
// `columns`: [label, cell(row), class]; `rows` have a key by `keyOf`.
export function table(caption, columns, rows, keyOf) {
  const head = columns.map(([label, , kind]) => h("th", { role: "columnheader", scope: "col", class: kind }, label));
  const body = rows.map((row) =>
    h(
      "tr",
      { role: "row", key: keyOf(row), class: row.class },
      columns.map(([label, cell, kind]) => h("td", { role: "cell", class: kind, "data-label": label }, h("div", {}, cell(row)))),
    ),
  );
  return h(
    "table",
    { role: "table" },
    h("caption", { class: "unseen-caption" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, body),
  );
}

export const section = (id, title, ...content) =>
  h("section", { "aria-labelledby": id, key: id }, h("h2", { id }, title), content);

export const empty = (text) => h("p", { class: "empty" }, text);

// A bar with its numbers as words beside it.
export const bar = (label, value, most) =>
  h("progress", { "aria-label": label, ...(most ? { max: String(most), value: String(Math.min(value, most)) } : {}) });

export const moved = (done, size) => (size ? `${bytes(done)} / ${bytes(size)} (${percent(done / size)})` : bytes(done));

// A button that needs a role: shown to everybody, and to those who may not press it with the reason.
export function act(me, label, onclick, { kind = "", name, disabled = false } = {}) {
  const may = me.role !== "viewer";
  const title = may ? undefined : t("needs-role", t("role-operator"));
  return h(
    "button",
    { type: "button", class: kind, onclick, disabled: !may || disabled, title, "aria-label": name && `${label}: ${plain(name)}` },
    label,
  );
}

// When something ends by itself: names of choices, and their seconds from now.
const ENDS = { never: 0, "1h": 3600, "8h": 28_800, "24h": 86_400, "7d": 604_800 };
export const ends = (form, names = Object.keys(ENDS)) =>
  field(t("ends"), choice(form.ends, names.map((one) => [one, t(`ends-${one}`)]), (value) => (form.ends = value)));
export const endOf = (form) => (ENDS[form.ends] ? new Date(now() + ENDS[form.ends] * 1000).toISOString() : null);

// Ask for the reason and the end of a hold. `what`: server, topic or group.
export function askHold(app, what, name) {
  const form = { ends: "never" };
  app.confirm({
    title: t("hold-title", strange(name)),
    text: t(what === "server" ? "hold-text" : "hold-all-text"),
    label: t("hold"),
    needsReason: true,
    more: () => ends(form),
    run: (reason) => app.ask(hold(what, name), { method: "PUT", body: { reason, until: endOf(form) } }),
  });
}

export const hold = (what, name) => `/holds/${what}/${encodeURIComponent(name)}`;

// Words for what went wrong.
export function words(problem) {
  if (!(problem instanceof Problem)) return String(problem);
  if (problem.code === "unreachable") return t("unreachable");
  const faults = problem.errors.map((one) => `${one.pointer ?? one.parameter ?? ""} ${one.detail}`.trim());
  return [problem.message, ...faults].filter(Boolean).join(" · ");
}

export const trouble = (problem) => problem && h("p", { class: "trouble", role: "alert" }, sign("bad", strange(words(problem))));

export const field = (label, input) => h("label", { class: "field" }, h("span", {}, label), input);

export const choice = (value, options, onchange, props = {}) =>
  h(
    "select",
    { ...props, onchange: (event) => onchange(event.target.value) },
    options.map(([name, text]) => h("option", { value: name, selected: name === value, key: name }, text)),
  );

export const count = (name, value) => t(name, number(value), value);
