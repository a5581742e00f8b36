// The frame: who is logged in, which page is shown, what is live, dialogs, languages, keys.

import { auditPage } from "./audit.js";
import { h, render } from "./dom.js";
import { clock, now, strange, time } from "./format.js";
import { findPage, jobPage } from "./find.js";
import { letterPage, lettersPage } from "./letters.js";
import { ask, Feed, STALE_SECONDS } from "./net.js";
import { nowPage } from "./now.js";
import { field, link, sign, trouble } from "./parts.js";
import { serverPage } from "./server.js";
import { language, setLanguage, t } from "./texts.js";

const PAGES = { now: { live: nowPage }, letters: lettersPage, find: findPage, jobs: jobPage, servers: serverPage, audit: auditPage };
const MENU = ["now", "letters", "find", "audit"];
const KEYS = { n: "now", d: "letters", f: "find", a: "audit" }; // after g
const REFRESH_MS = 5000; // of pages that show what the stream does not tell
const root = document.getElementById("page");

class App {
  me = null;
  view = null; // what the page loaded
  problem = null;
  dialog = null; // describes what is in the dialog
  login = { token: "", problem: null };
  visit = 0; // counts routes: an answer for a page that was left is dropped

  // Ask; who is not logged in any more gets the login instead of the page.
  ask = async (...what) => {
    try {
      return await ask(...what);
    } catch (problem) {
      if (problem.status === 401) this.leave("session-over");
      throw problem;
    }
  };

  async start() {
    addEventListener("hashchange", () => this.enter());
    addEventListener("keydown", (event) => this.key(event));
    setInterval(() => document.hidden || this.draw(), 1000);
    setInterval(() => this.page?.refreshes && this.view && !this.dialog && !document.hidden && !this.isCut && this.reload(), REFRESH_MS);
    await this.meet();
  }

  async meet() {
    try {
      this.me = await ask("/me");
      this.login = { token: "", problem: null };
      this.feed ??= new Feed(() => this.changed(), () => this.leave("session-over"));
      this.feed.start();
    } catch (problem) {
      this.me = null;
      if (problem.status !== 401) this.login.problem = problem;
    }
    this.enter();
  }

  // An operation that ended has changed the lists of dead letters.
  changed() {
    const over = (this.feed.snapshots.operations?.items ?? []).filter((one) => one.ended_at).length;
    const isNews = this.over !== undefined && over !== this.over;
    this.over = over;
    if (isNews && this.page === lettersPage && this.view) this.reload();
    else this.draw();
  }

  leave(remark = "") {
    this.me = null;
    this.login = { token: "", problem: null, remark };
    this.feed?.stop();
    this.draw();
  }

  // --- pages ---

  parse() {
    const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
    const given = {};
    for (const [name, value] of new URLSearchParams(search)) given[name] = name in given ? [given[name], value].flat() : value;
    let parts = [];
    try {
      parts = path.split("/").filter(Boolean).map(decodeURIComponent);
    } catch {
      parts = ["?"];
    }
    return { name: parts[0] ?? "now", parts: parts.slice(1), given };
  }

  get page() {
    const { name, parts } = this.parse();
    return name === "letters" && parts.length ? letterPage : Object.hasOwn(PAGES, name) ? PAGES[name] : null;
  }

  go(hash) {
    if (location.hash === `#${hash}`) this.reload();
    else location.hash = hash;
  }

  async enter() {
    this.view = this.refused = null;
    this.close();
    await this.reload();
    const field = this.wantsField && document.getElementById("find-field");
    this.wantsField = false;
    if (field) field.focus();
    else if (this.me && document.activeElement === document.body) document.getElementById("main")?.focus({ preventScroll: true });
  }

  async reload() {
    const visit = ++this.visit;
    this.problem = null;
    this.draw();
    const { page } = this;
    if (!this.me || !page?.load) return;
    const { given, parts } = this.parse();
    try {
      const view = await page.load(this, given, ...parts);
      if (visit !== this.visit) return;
      const keeps = this.view ? (page.keeps ?? []) : []; // what its reader did stays
      for (const name of keeps) delete view[name];
      this.view = Object.assign(this.view ?? {}, view);
      this.viewOf = location.hash;
    } catch (problem) {
      if (visit === this.visit) this.problem = problem;
    }
    this.draw();
  }

  // Do something; what goes wrong stays on the page.
  async run(action) {
    try {
      this.problem = null;
      await action();
    } catch (problem) {
      this.problem = problem;
    }
    this.draw();
  }

  // A button for the next page of a list, and how far back was searched.
  pager(view, page, address) {
    if (!page.next) return null;
    const more = () =>
      this.run(async () => {
        const next = await ask(address(page.next));
        view.items = [...view.items, ...next.items];
        view.page = next;
      });
    return h("p", {}, page.searched_until && [t("searched-until", time(page.searched_until)), " "], h("button", { type: "button", onclick: more }, t("more")));
  }

  // --- dialogs ---

  open(content) {
    this.opener = document.activeElement;
    this.dialog = content;
    this.draw();
  }

  close() {
    if (!this.dialog) return;
    this.dialog = null;
    this.draw();
    this.opener?.focus();
  }

  // Ask once more, with a reason, before something is done.
  confirm({ title, text, label, run, more, needsReason = false }) {
    const form = { reason: "", problem: null, busy: false };
    const go = async (event) => {
      event.preventDefault();
      form.busy = true;
      this.draw();
      try {
        await run(form.reason.trim());
        this.close();
        this.reload();
      } catch (problem) {
        form.problem = problem;
      }
      form.busy = false;
      this.draw();
    };
    this.open(() =>
      h(
        "form",
        { onsubmit: go },
        h("h2", { id: "dialog-title" }, title),
        h("p", {}, text),
        trouble(form.problem),
        field(needsReason ? t("reason-needed") : t("reason"), h("input", { type: "text", maxlength: "500", required: needsReason, value: form.reason, oninput: (e) => (form.reason = e.target.value) })),
        more?.(),
        h("div", { class: "buttons" }, h("button", { type: "submit", class: "main", disabled: form.busy }, label), h("button", { type: "button", onclick: () => this.close() }, t("cancel"))),
      ),
    );
  }

  // --- the frame ---

  get isCut() {
    return this.feed !== undefined && Date.now() - (this.feed.heardAt ?? this.feed.madeAt) > STALE_SECONDS * 1000;
  }

  get stale() {
    return this.isCut || Object.values(this.feed?.snapshots ?? {}).some((one) => one.stale);
  }

  draw() {
    document.title = `${t(MENU.includes(this.parse().name) ? this.parse().name : "now")} · etl-file-sync`;
    document.body.classList.toggle("stale", Boolean(this.me) && this.stale);
    render(root, this.me ? this.whole() : this.loginForm());
    const dialog = root.querySelector("dialog");
    if (dialog && !dialog.open) dialog.showModal();
  }

  whole() {
    const { name, given, parts } = this.parse();
    const { page } = this;
    const content = !page
      ? h("p", { class: "empty" }, t("no-page"))
      : page.live
        ? page.live(this)
        : this.view && this.viewOf === location.hash // the address may have changed a moment ago
          ? page.show(this, this.view, given, ...parts)
          : this.problem
            ? page.form?.(this, (this.refused ??= page.blank(given))) // what was refused can be mended
            : h("p", { class: "empty" }, t("loading"));
    return [
      h("a", { key: "skip", class: "skip", href: "#main", onclick: (e) => (e.preventDefault(), document.getElementById("main").focus()) }, t("skip")),
      h(
        "header",
        { key: "header" },
        h("strong", { class: "brand" }, "etl-file-sync"),
        h("nav", { "aria-label": t("pages") }, MENU.map((one) => link(`/${one}`, { key: one, "aria-current": one === name ? "page" : undefined }, t(one)))),
        h("div", { class: "frame" }, this.liveness(), this.languages(), h("span", {}, strange(this.me.name), " (", t(`role-${this.me.role}`), ")"), h("button", { type: "button", class: "small", onclick: () => this.logOut() }, t("log-out"))),
      ),
      h("main", { key: `main ${location.hash}`, id: "main", tabindex: "-1" }, trouble(this.problem), content),
      this.dialog && h("dialog", { key: "dialog", "aria-labelledby": "dialog-title", oncancel: (e) => (e.preventDefault(), this.close()) }, this.dialog()),
    ];
  }

  liveness() {
    const { heardAt } = this.feed;
    if (heardAt === null && !this.isCut) return h("span", { class: "live" }, t("connecting"));
    if (!this.stale) return h("span", { class: "live" }, sign("good", t("live")), " ", h("span", { class: "number" }, clock(now())));
    const why = this.isCut ? t("stale-cut") : t("stale-kafka");
    return h("span", { class: "live", role: "alert" }, sign("warn", heardAt !== null && [t("stale-since", clock(heardAt)), ". "], why));
  }

  languages() {
    const choose = (name) => (setLanguage(name), this.draw());
    return h(
      "span",
      { role: "group", "aria-label": t("language") },
      [["en", "English"], ["ko", "한국어"]].map(([name, word]) => h("button", { key: name, type: "button", class: "small", lang: name, "aria-pressed": String(language() === name), onclick: () => choose(name) }, word)),
    );
  }

  async logOut() {
    await this.run(() => ask("/session", { method: "DELETE" }));
    this.leave();
  }

  loginForm() {
    const go = async (event) => {
      event.preventDefault();
      try {
        await ask("/session", { method: "POST", body: { token: this.login.token.trim() } });
        await this.meet();
      } catch (problem) {
        this.login.problem = problem;
        this.draw();
      }
    };
    return h(
      "main",
      { key: "login", class: "login", id: "main" },
      h("h1", {}, "etl-file-sync"),
      h("form", { onsubmit: go }, trouble(this.login.problem), this.login.remark && h("p", { role: "status" }, sign("warn", t(this.login.remark))), field(t("token"), h("input", { type: "password", autocomplete: "current-password", required: true, value: this.login.token, oninput: (e) => (this.login.token = e.target.value) })), h("div", { class: "buttons" }, h("button", { type: "submit", class: "main" }, t("login")))),
      h("p", { class: "hint" }, t("login-hint")),
      this.languages(),
    );
  }

  // `/` finds; g and a letter goes to a page.
  key(event) {
    if (!this.me || this.dialog || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
    if (event.key === "/") {
      event.preventDefault();
      const here = document.getElementById("find-field");
      this.wantsField = !here;
      if (here) here.focus();
      else this.go("/find");
    } else if (this.lastKey === "g" && KEYS[event.key]) this.go(`/${KEYS[event.key]}`);
    this.lastKey = event.key;
  }
}

new App().start();
