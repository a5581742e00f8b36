// Dead letters: by cause, then one by one; replay and discard; one letter whole.

import { h } from "./dom.js";
import { brief, number, plain, strange, time } from "./format.js";
import { query } from "./net.js";
import { askOperation, operations } from "./operations.js";
import { act, count, empty, field, file, fromTo, jobLink, letterLink, link, route, section, sign, table } from "./parts.js";
import { t } from "./texts.js";

const FILTERS = ["code", "server", "path", "job_id", "newer_than", "older_than"];
const LABELS = { code: "code", server: "server", path: "path", job_id: "job-id", newer_than: "newer-than", older_than: "older-than" };
const LISTS = ["code", "server", "job_id"]; // of which several may be given

export const lettersPage = {
  keeps: ["chosen", "form"],
  async load(app, given) {
    const wanted = filterOf(given);
    const [causes, page] = await Promise.all([app.ask(`/dead-letters/causes${query(wanted)}`), app.ask(`/dead-letters${query(wanted)}`)]);
    return { causes, items: page.items, page, chosen: new Set(), ...this.blank(given) };
  },
  blank: (given) => ({ form: Object.fromEntries(FILTERS.map((name) => [name, [given[name] ?? []].flat().join(", ")])) }),
  form: filterForm,
  show(app, view, given) {
    const { causes, items, page, chosen } = view;
    const wanted = filterOf(given);
    const places = items.map((one) => one.place).filter((place) => chosen.has(place));
    const set = places.length ? { places } : { filter: wanted };
    const ops = app.feed.snapshots.operations?.items ?? [];
    return [
      h("h1", {}, t("letters"), " ", h("span", { class: "number" }, number(causes.total))),
      filterForm(app, view),
      section("causes", t("causes"), causeTable(app, causes.items, wanted)),
      section(
        "list",
        t("list"),
        items.length > 0 &&
          h(
            "div",
            { class: "buttons" },
            act(app.me, t("replay"), () => askOperation(app, "replay", set), { kind: "main" }),
            act(app.me, t("discard"), () => askOperation(app, "discard", set), { kind: "danger" }),
            h("a", { class: "button", href: `/api/v1/dead-letters/export${query(wanted)}`, download: true }, t("export")),
            h("span", { "aria-live": "polite" }, places.length ? t("selected", number(places.length)) : t("all-matching", number(causes.total))),
          ),
        letterTable(app, items, chosen),
        app.pager(view, page, (cursor) => `/dead-letters${query({ ...wanted, cursor })}`),
      ),
      section("operations", t("operations"), operations(app, ops.slice(0, 20))),
    ];
  },
};

function filterOf(given) {
  const found = {};
  for (const name of FILTERS) if (given[name]) found[name] = LISTS.includes(name) ? [given[name]].flat() : [given[name]].flat()[0];
  return found;
}

function filterForm(app, view) {
  const submit = (event) => {
    event.preventDefault();
    const wanted = {};
    for (const name of FILTERS) {
      const text = view.form[name].trim();
      if (text) wanted[name] = LISTS.includes(name) ? text.split(",").map((one) => one.trim()).filter(Boolean) : text;
    }
    app.go(route(["letters"], wanted));
  };
  return h(
    "form",
    { class: "filter", onsubmit: submit, "aria-label": t("filter") },
    FILTERS.map((name) =>
      field(
        t(LABELS[name]),
        h("input", { type: "text", name, value: view.form[name], placeholder: name.endsWith("_than") ? t("age-hint") : undefined, oninput: (event) => (view.form[name] = event.target.value) }),
      ),
    ),
    h("div", { class: "buttons" }, h("button", { type: "submit" }, t("apply")), link("/letters", { class: "button" }, t("clear_filter"))),
  );
}

// The filter that means one cause, within what is filtered already.
function filterOfCause(cause, wanted) {
  const found = { ...wanted, code: [cause.code] };
  if (cause.source) found.server = [cause.source];
  if (cause.folder && !/[*?[\]]/.test(cause.folder)) found.path = `${cause.folder.replace(/\/$/, "")}/*`;
  return found;
}

function causeTable(app, items, wanted) {
  if (!items.length) return empty(t("causes-empty"));
  return table(
    t("causes"),
    [
      [t("code"), (one) => h("code", {}, strange(one.code))],
      [t("server"), (one) => [strange(one.source ?? "–"), " → ", strange(one.destination ?? "–")]],
      [t("folder"), (one) => brief(one.folder)],
      [t("count"), (one) => link(route(["letters"], filterOfCause(one, wanted)), { "aria-label": `${t("filter")}: ${one.code} ${plain(one.folder)}, ${number(one.count)}` }, number(one.count)), "number"],
      [t("last"), (one) => time(one.last_at)],
      [t("first"), (one) => time(one.first_at)],
      [t("example"), (one) => [letterLink(one.sample.place), " ", brief(one.sample.error, 300)], "wide"],
      [
        t("action"),
        (one) => act(app.me, t("replay"), () => askOperation(app, "replay", { filter: filterOfCause(one, wanted) }), { kind: "small", name: `${one.code} ${one.folder}` }),
      ],
    ],
    items,
    (one) => `${one.code} ${one.source} ${one.destination} ${one.folder}`,
  );
}

function letterTable(app, items, chosen) {
  if (!items.length) return empty(t("causes-empty"));
  const all = items.every((one) => chosen.has(one.place));
  const toggle = (places, on) => {
    for (const place of places) on ? chosen.add(place) : chosen.delete(place);
    app.draw();
  };
  return [
    h("label", { class: "check" }, h("input", { type: "checkbox", checked: all, onchange: (event) => toggle(items.map((one) => one.place), event.target.checked) }), " ", t("select-all")),
    table(
      t("list"),
      [
        [
          t("select"),
          (one) => h("input", { type: "checkbox", checked: chosen.has(one.place), "aria-label": t("select-one", one.place), onchange: (event) => toggle([one.place], event.target.checked) }),
        ],
        [t("letter"), (one) => letterLink(one.place)],
        [t("when"), (one) => time(one.at)],
        [t("code"), (one) => h("code", {}, strange(one.code))],
        [t("file"), fromTo, "wide"],
        [t("error"), (one) => brief(one.error, 300), "wide"],
        [t("job"), (one) => (one.job ? jobLink(one.job, brief(one.job_id ?? one.job, 60)) : brief(one.job_id, 60))],
      ],
      items,
      (one) => one.place,
    ),
  ];
}

export const letterPage = {
  load: (app, _given, place) => app.ask(`/dead-letters/${encodeURIComponent(place)}`),
  show(app, { letter, message, others }) {
    const waits = letter.state === "waiting";
    const set = { places: [letter.place] };
    return [
      h("h1", {}, t("letter-title", letter.place)),
      h(
        "div",
        { class: "buttons" },
        act(app.me, t("replay"), () => askOperation(app, "replay", set), { kind: "main", disabled: !waits || !letter.can_replay }),
        act(app.me, t("discard"), () => askOperation(app, "discard", set), { kind: "danger", disabled: !waits }),
        h("a", { class: "button", href: `/api/v1/dead-letters/${encodeURIComponent(letter.place)}/original`, download: true }, t("original")),
      ),
      facts([
        [t("code"), h("code", {}, strange(letter.code))],
        [t("error"), strange(letter.error)],
        [t("when"), time(letter.at)],
        [t("settled"), [sign(waits ? "warn" : "calm", t(`settled-${letter.state}`)), letter.settled_at && [" ", time(letter.settled_at)]]],
        [t("job"), letter.job ? jobLink(letter.job, strange(letter.job_id ?? letter.job)) : strange(letter.job_id)],
        [t("from"), file(letter.source, strange)],
        [t("to"), file(letter.destination, strange)],
        [t("replays"), number(letter.replays)],
      ]),
      others.length > 0 && section("others", t("others"), h("ul", {}, others.map((one) => h("li", { key: one.place }, letterLink(one.place), " ", time(one.at), " ", t(`settled-${one.state}`))))),
      section("message", t("message"), json(message)),
    ];
  },
};

export const facts = (rows) => h("dl", { class: "facts" }, rows.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, value))));

// JSON line by line; the unseen in it is shown. It scrolls, so the keyboard must reach it.
export const json = (value) =>
  h("pre", { tabindex: "0" }, JSON.stringify(value, null, 2).split("\n").map((line) => [strange(line), "\n"]));
