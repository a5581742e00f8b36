// Numbers, sizes, ages, times in the chosen language; text of strangers made visible.

import { h } from "./dom.js";
import { language, t } from "./texts.js";

let skew = 0; // milliseconds that the API's clock is ahead of ours

// Learn the API's clock from the Date header of an answer; it has whole seconds.
export function setClock(date) {
  const told = Date.parse(date ?? "");
  if (Number.isFinite(told) && Math.abs(told - Date.now() - skew) > 2000) skew = told - Date.now();
}

export const now = () => Date.now() + skew;

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(language(), { maximumFractionDigits: digits }).format(value ?? 0);

export const percent = (share) =>
  new Intl.NumberFormat(language(), { style: "percent", maximumFractionDigits: 1 }).format(share);

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  let left = value ?? 0;
  while (left >= 999.5 && at < units.length - 1) {
    left /= 1000;
    at += 1;
  }
  return `${number(left, at && left < 99.95 ? 1 : 0)}\u00a0${units[at]}`;
}

// Seconds in the largest unit that leaves two digits: 250 ms, 40 s, 4 min, 3 h, 3 d.
export function age(seconds) {
  const left = Math.max(0, seconds);
  if (left < 1) return `${number(left * 1000, left < 0.01 ? 1 : 0)}\u00a0ms`;
  if (left < 120) return t("seconds", number(left));
  if (left < 7200) return t("minutes", number(left / 60));
  if (left < 172_800) return t("hours", number(left / 3600));
  return t("days", number(left / 86_400));
}

export const secondsSince = (iso) => (now() - Date.parse(iso)) / 1000;

const day = (at, zone) =>
  new Intl.DateTimeFormat(language(), { dateStyle: "medium", timeStyle: "medium", timeZone: zone }).format(at);

export const clock = (at) =>
  new Intl.DateTimeFormat(language(), { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" }).format(at);

export const clockOf = (iso) =>
  new Intl.DateTimeFormat(language(), { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(new Date(iso));

// A time, relative; the exact one, here and in UTC, is its title. `form`: "ago", "in" or "for" (since then).
export function time(iso, form = "ago") {
  if (!iso) return null;
  const at = new Date(iso);
  const seconds = secondsSince(iso);
  const title = `${day(at)} · ${day(at, "UTC")} UTC`;
  const words =
    form === "for" ? age(seconds) : Math.abs(seconds) < 1 ? t("just-now") : seconds < 0 ? t("in", age(-seconds)) : t("ago", age(seconds));
  return h("time", { datetime: iso, title }, words);
}

// Characters that cannot be seen, or that change the order or look of others: control and format characters, private
// and unassigned ones, lone surrogates, all that is ignorable by default (Hangul fillers too), odd spaces.
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\p{DI}\u2800]|(?! )\p{Zs}/gu;

// Text that somebody else wrote, as elements: never HTML, apart from its surroundings' direction, the unseen shown.
export function strange(text, props = {}) {
  const parts = [];
  let at = 0;
  const source = String(text ?? "");
  for (const match of source.matchAll(UNSEEN)) {
    parts.push(source.slice(at, match.index));
    const point = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.push(h("span", { class: "unseen", title: t("unseen", `U+${point}`) }, `\\u{${point}}`));
    at = match.index + match[0].length;
  }
  parts.push(source.slice(at));
  return h("bdi", { ...props, class: `strange ${props.class ?? ""}`.trim() }, parts);
}

// The same for lists: of a long text both ends, and all of it as its title.
export function brief(text, most = 120) {
  const letters = [...String(text ?? "")];
  if (letters.length <= most) return strange(text);
  const half = Math.floor(most / 2);
  return strange(`${letters.slice(0, half).join("")}…${letters.slice(-half).join("")}`, { title: plain(text) });
}

// The same as a string, for attributes.
export const plain = (text) =>
  String(text ?? "").replace(UNSEEN, (one) => `\\u{${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}}`);
