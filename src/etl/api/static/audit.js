// The audit: who did what, why, and how it ended; what was refused, too.

import { h } from "./dom.js";
import { brief, number, strange, time } from "./format.js";
import { query } from "./net.js";
import { choice, empty, field, link, route, section, sign, table } from "./parts.js";
import { has, t } from "./texts.js";

const FIELDS = { actor: "actor", action: "action", target: "target" };
const RESULTS = { done: "good", refused: "warn", failed: "bad" };
const wantedOf = (given) => ({ actor: given.actor, action: given.action, target: given.target, result: given.result });

export const auditPage = {
  async load(app, given) {
    const page = await app.ask(`/audit${query(wantedOf(given))}`);
    return { page, items: page.items, ...this.blank(given) };
  },
  blank: (given) => ({ form: { actor: "", action: "", target: "", result: "", ...wantedOf(given) } }),
  form: auditForm,
  show(app, view, given) {
    const { items, page } = view;
    return [
      h("h1", {}, t("audit")),
      auditForm(app, view),
      section("acts", t("audit"), acts(items), app.pager(view, page, (cursor) => `/audit${query({ ...wantedOf(given), cursor })}`)),
    ];
  },
};

function auditForm(app, { form }) {
  const go = (event) => {
    event.preventDefault();
    app.go(route(["audit"], form));
  };
  return h(
    "form",
    { class: "filter", onsubmit: go, "aria-label": t("filter") },
    Object.entries(FIELDS).map(([name, label]) => field(t(label), h("input", { type: "text", name, value: form[name] ?? "", oninput: (event) => (form[name] = event.target.value) }))),
    field(t("outcome"), choice(form.result ?? "", [["", t("any")], ...Object.keys(RESULTS).map((name) => [name, t(`result-${name}`)])], (value) => (form.result = value))),
    h("div", { class: "buttons" }, h("button", { type: "submit" }, t("apply")), link("/audit", { class: "button" }, t("clear_filter"))),
  );
}

function acts(items) {
  if (!items.length) return empty(t("audit-empty"));
  return table(
    t("audit"),
    [
      [t("when"), (one) => time(one.at)],
      [t("actor"), (one) => strange(one.actor)],
      [t("action"), (one) => strange(one.action)],
      [t("target"), (one) => [brief(one.target), one.count !== undefined && one.count !== null && [" · ", number(one.count)]]],
      [t("reason"), (one) => strange(one.reason ?? ""), "wide"],
      [t("outcome"), (one) => sign(RESULTS[one.result] ?? "calm", has(`result-${one.result}`) ? t(`result-${one.result}`) : strange(one.result))],
      [t("address"), (one) => [strange(one.via), " ", strange(one.address)]],
    ],
    items,
    (one) => `${one.at} ${one.request_id ?? ""} ${one.action} ${one.target}`,
  );
}
