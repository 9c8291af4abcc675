// The console: who is signed in, which page shows, and live updates.

import { onRefused, signedIn, signOut } from "./api";
import { bundlesView } from "./bundles";
import { deployView } from "./deploy";
import { deploymentView } from "./deployment";
import { deploymentsView } from "./deployments";
import { deviceView } from "./device";
import { devicesView } from "./devices";
import { h, replace } from "./dom";
import { follow, type Link } from "./events";
import { tick } from "./format";
import { signInPage } from "./signin";
import { heading, Refresher, type View } from "./view";

const pollEvery = 20_000; // ms; heartbeats are no events

const tabs = [["devices", "Devices"], ["bundles", "Bundles"], ["deployments", "Deployments"]] as const;

let view: View | null = null;
let unfollow: (() => void) | null = null;
const main = h("main", { id: "main" });
const live = h("span", { class: "live", role: "status" });
const links = tabs.map(([page, text]) => h("a", { href: `#/${page}` }, text));

function viewOf(path: string[], query: URLSearchParams): View {
  const [page, id] = path;
  switch (page) {
    case undefined: return devicesView(query);
    case "devices": return id ? deviceView(id) : devicesView(query);
    case "bundles": return bundlesView();
    case "deployments": return id ? deploymentView(id) : deploymentsView(query);
    case "deploy": return deployView(query);
  }
  return {
    title: "Not found", wants: () => false, refresher: new Refresher(async () => {}),
    el: h("section", null, heading("Not found"), h("p", null, "There is no such page. ", h("a", { href: "#/devices" }, "Devices"))),
  };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function navigate(): void {
  if (!signedIn()) return;
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const parts = path.split("/").filter(Boolean).map(decode);
  const first = view === null;
  view?.refresher.close();
  view = viewOf(parts, new URLSearchParams(query));
  document.title = `${view.title} · Kernex`;
  const tab = parts[0] === "deploy" ? "deployments" : parts[0] ?? "devices";
  tabs.forEach(([page], i) => {
    if (page === tab) links[i]!.setAttribute("aria-current", "page");
    else links[i]!.removeAttribute("aria-current");
  });
  replace(main, view.el);
  window.scrollTo(0, 0);
  if (!first) main.querySelector<HTMLElement>("h1")?.focus();
  void view.refresher.now();
}

function showLink(state: Link): void {
  live.className = `live ${state}`;
  live.textContent = { connecting: "connecting", live: "live", broken: "reconnecting" }[state];
  if (state === "live") view?.refresher.soon(); // what happened in between
}

function start(): void {
  replace(document.body,
    h("a", { class: "skip", href: "#main", onclick: (e: Event) => { e.preventDefault(); main.querySelector<HTMLElement>("h1")?.focus(); } }, "Skip to content"),
    h("header", { class: "top" },
      h("a", { class: "brand", href: "#/devices" }, "Kernex"),
      h("nav", { "aria-label": "Main" }, links),
      live,
      h("button", { class: "quiet", onclick: () => leave("") }, "Sign out")),
    main);
  unfollow = follow({ event: (e) => { if (view?.wants(e)) view.refresher.soon(); }, link: showLink });
  navigate();
}

function leave(why: string): void {
  signOut();
  unfollow?.();
  view?.refresher.close();
  view = null;
  document.querySelectorAll("dialog").forEach((d) => d.close());
  document.title = "Kernex";
  replace(document.body, signInPage(why, start));
}

onRefused((detail) => leave(`You were signed out: ${detail}`));
window.addEventListener("hashchange", navigate);
document.addEventListener("visibilitychange", () => { if (!document.hidden) view?.refresher.soon(); });
document.addEventListener("keydown", (e) => {
  if (e.key !== "/" || e.ctrlKey || e.metaKey || e.altKey || (e.target as Element).closest("input, textarea, select, dialog")) return;
  const search = main.querySelector<HTMLElement>("[data-search]");
  if (search) {
    e.preventDefault();
    search.focus();
  }
});
setInterval(tick, 5000);
setInterval(() => { if (!document.hidden) view?.refresher.soon(); }, pollEvery);

if (signedIn()) start();
else leave("");
