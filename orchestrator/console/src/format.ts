// How values read.

import { now } from "./api";
import { type Child, h } from "./dom";
import type { Device } from "./types";

export function words(s: string): string {
  return s.replaceAll("_", " ");
}

export function bytes(n: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let u = 0;
  while (n >= 1024 && u < units.length - 1) {
    n /= 1024;
    u++;
  }
  return `${u === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[u]}`;
}

export function seconds(s: number): string {
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function relative(at: number): string {
  const s = Math.round((now() - at) / 1000);
  const d = Math.abs(s);
  if (d < 3) return "now";
  const text = d < 60 ? `${d} s` : d < 3600 ? `${Math.floor(d / 60)} min` : d < 86400 ? `${Math.floor(d / 3600)} h` : `${Math.floor(d / 86400)} d`;
  return s < 0 ? `in ${text}` : `${text} ago`;
}

// ago shows a time relative to now; tick keeps it true.
export function ago(time: string | null): Child {
  if (!time) return h("span", { class: "muted" }, "never");
  const at = Date.parse(time);
  return h("time", { datetime: time, title: new Date(at).toLocaleString() }, relative(at));
}

export function tick(): void {
  for (const t of document.querySelectorAll<HTMLTimeElement>("main time")) {
    const text = relative(Date.parse(t.dateTime));
    if (t.textContent !== text) t.textContent = text;
  }
}

const tones: Record<string, string> = {
  online: "good", healthy: "good", success: "good", succeeded: "good", applied: "good",
  degraded: "warn", pending: "warn", quarantined: "warn", paused: "warn", awaiting_approval: "warn", rolled_back: "warn", reverted: "warn",
  error: "bad", failed: "bad", rejected: "bad", timed_out: "bad", revoked: "bad",
  in_progress: "busy", accepted: "busy", downloading: "busy", installing: "busy", verifying: "busy", offered: "busy",
};

// status is a coloured dot and the word: colour alone says nothing to many.
export function status(s: string): Child {
  if (!s) return h("span", { class: "muted" }, "–");
  return h("span", { class: `status ${tones[s] ?? "idle"}` }, words(s));
}

// health is only what a device last said: of one that is away it is grey.
export function health(d: Device): Child {
  if (d.health && d.status !== "online" && d.status !== "error") return h("span", { class: "status idle", title: "As last reported" }, d.health);
  return status(d.health);
}

// config shows the desired version and, where it differs, the reported one.
export function config(d: Device): Child {
  if (d.config_reported !== d.config_version) {
    return h("span", { class: "status busy", title: "The device has not reported the desired version yet" },
      `v${d.config_version}`, h("span", { class: "muted" }, d.config_reported ? ` reported v${d.config_reported}` : " not reported"));
  }
  if (d.config_outcome && d.config_outcome !== "applied") return h("span", { class: "status bad" }, `v${d.config_version} ${d.config_outcome}`);
  return `v${d.config_version}`;
}

export function labels(l: Record<string, string> | null): Child {
  const all = Object.entries(l ?? {}).sort();
  return all.length ? h("span", { class: "labels" }, all.map(([k, v]) => h("span", { class: "label" }, `${k}=${v}`))) : null;
}

export function facts(...pairs: [string, Child][]): HTMLElement {
  return h("dl", { class: "facts" }, pairs.map(([k, v]) => h("div", null, h("dt", null, k), h("dd", null, v === "" || v === null || v === undefined ? h("span", { class: "muted" }, "–") : v))));
}

export function short(id: string): Child {
  return h("code", { title: id }, id.slice(0, 12));
}
