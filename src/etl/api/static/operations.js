// Operations on dead letters: how far they are, and the dialog that asks for one.

import { h } from "./dom.js";
import { number, strange, time } from "./format.js";
import { act, bar, count, empty, field, fromTo, sign, table, trouble } from "./parts.js";
import { t } from "./texts.js";

const MOODS = { running: "busy", canary: "busy", stopped: "warn", done: "good" };
const REASON_ABOVE = 100;
const TYPED_ABOVE = 1000;

export function operations(app, items) {
  if (!items.length) return empty(t("operations-empty"));
  const isOver = (one) => one.state === "done" || one.state === "stopped";
  const tell = (one, verb) => app.run(() => app.ask(`/operations/${one.id}${verb === "go" ? "/go" : ""}`, { method: verb === "go" ? "POST" : "DELETE" }));
  return table(
    t("operations"),
    [
      [t("what"), (one) => [t(one.kind), one.reason && [": ", strange(one.reason)]]],
      [t("by"), (one) => [strange(one.by), " ", time(one.at)]],
      [t("state"), (one) => [sign(MOODS[one.state] ?? "calm", t(`op-${one.state}`)), one.remark && [" ", strange(one.remark)]]],
      [
        t("progress"),
        (one) => [
          bar(t(one.kind), one.done + one.failed + one.skipped, one.total),
          h("span", { class: "number" }, t("op-progress", number(one.done), number(one.total))),
          one.skipped > 0 && [" · ", t("op-skipped", number(one.skipped))],
          one.failed > 0 && [" · ", t("op-failed", number(one.failed))],
        ],
        "wide",
      ],
      [
        t("action"),
        (one) => [
          one.state === "canary" && act(app.me, t("go-on"), () => tell(one, "go"), { kind: "small", name: one.id }),
          !isOver(one) && act(app.me, t("stop"), () => tell(one, "stop"), { kind: "small", name: one.id }),
        ],
      ],
    ],
    items.map((one) => ({ ...one, class: `operation ${one.state}` })),
    (one) => one.id,
  );
}

// Ask for an operation: count first, then say how, then do it. `set`: {places} or {filter}.
export function askOperation(app, kind, set) {
  const form = { preview: null, canary: kind === "replay", perSecond: "", reason: "", typed: "", problem: null, busy: false };
  // The same answer for the same wish, if it is sent twice; a new one after the number has changed.
  let key = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const again = () => app.draw();

  async function look() {
    form.preview = null;
    try {
      form.preview = await app.ask(`/dead-letters/${kind}s`, { method: "POST", body: { ...set, dry_run: true, reason: form.reason } });
    } catch (problem) {
      form.problem = problem;
    }
    again();
  }

  async function go(event) {
    event.preventDefault();
    form.busy = true;
    form.problem = null;
    again();
    const body = { ...set, expected: form.preview.count, reason: form.reason };
    if (kind === "replay" && form.canary) body.canary = true;
    if (form.perSecond) body.per_second = Number(form.perSecond);
    try {
      await app.ask(`/dead-letters/${kind}s`, { method: "POST", body, headers: { "Idempotency-Key": key } });
      app.close();
      app.reload();
    } catch (problem) {
      form.problem = problem;
      if (problem.code === "count-differs") {
        key = crypto.getRandomValues(new Uint32Array(4)).join("-");
        await look();
      }
    }
    form.busy = false;
    again();
  }

  app.open(() => {
    const { preview } = form;
    const n = preview?.count ?? 0;
    const needsReason = kind === "discard" || n > REASON_ABOVE;
    const ready = n > 0 && !form.busy && (!needsReason || form.reason.trim()) && (n <= TYPED_ABOVE || form.typed.replaceAll(/\D/g, "") === String(n));
    return h(
      "form",
      { onsubmit: go },
      h("h2", { id: "dialog-title" }, t(`${kind}-title`, preview ? count("letters-n", n) : "…")),
      form.problem?.code === "count-differs" ? h("p", { class: "trouble", role: "alert" }, sign("warn", t("count-changed"))) : trouble(form.problem),
      preview && [
        n === 0 && h("p", {}, t("nothing-left")),
        h("p", {}, t("set-told")),
        preview.not_replayable > 0 && h("p", {}, t("not-replayable", number(preview.not_replayable))),
        h("ul", { class: "sample" }, preview.sample.map((one) => h("li", { key: one.place }, h("code", {}, one.code), " ", fromTo(one)))),
      ],
      kind === "replay" && h("label", { class: "check" }, h("input", { type: "checkbox", checked: form.canary, onchange: (e) => ((form.canary = e.target.checked), again()) }), " ", t("canary")),
      field(t("rate-limit"), h("input", { type: "text", inputmode: "decimal", pattern: "[0-9]+([.][0-9]+)?", placeholder: t("no-limit"), value: form.perSecond, oninput: (e) => ((form.perSecond = e.target.value), again()) })),
      field(needsReason ? t("reason-needed") : t("reason"), h("input", { type: "text", maxlength: "500", required: needsReason, value: form.reason, oninput: (e) => ((form.reason = e.target.value), again()) })),
      n > TYPED_ABOVE && field(t("type-number", number(n)), h("input", { type: "text", inputmode: "numeric", value: form.typed, oninput: (e) => ((form.typed = e.target.value), again()) })),
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "submit", class: kind === "replay" ? "main" : "danger", disabled: !ready }, `${t(kind)} ${number(n)}`),
        h("button", { type: "button", onclick: () => app.close() }, t("cancel")),
      ),
    );
  });
  look();
}
