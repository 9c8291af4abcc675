// The list of devices.

import { get } from "./api";
import { h, Table } from "./dom";
import { ago, config, health, labels, status } from "./format";
import { type Device, deviceStatuses, type List } from "./types";
import { field, heading, link, Pager, Refresher, select, type View } from "./view";

export function devicesView(query: URLSearchParams): View {
  const filter = { q: query.get("q") ?? "", selector: query.get("selector") ?? "", status: query.get("status") ?? "" };
  const table = new Table<Device>("Devices", [
    { title: "Device", cell: (d) => [h("a", { href: link(`/devices/${d.id}`) }, d.id), d.device_type && h("span", { class: "muted" }, ` ${d.device_type}`), labels(d.labels)] },
    { title: "Status", cell: (d) => status(d.status) },
    { title: "Health", cell: health },
    { title: "Running", cell: (d) => d.bundle_name ? [d.bundle_name, " ", h("b", null, d.bundle_version)] : h("span", { class: "muted" }, "nothing") },
    { title: "Config", cell: config },
    { title: "Heartbeat", cell: (d) => ago(d.last_heartbeat) },
  ], (d) => d.id, "No device matches. Devices appear here when they enrol.");
  const refresher = new Refresher(async (signal) => {
    const list = await get<List<Device>>("/devices", { ...filter, limit: pager.size, cursor: pager.cursor }, signal);
    table.show(list.items ?? []);
    pager.show(list);
  });
  const pager = new Pager(50, () => void refresher.now());
  const deploy = h("a", { class: "button" }, "Deploy to these");
  const changed = (): void => {
    pager.reset();
    history.replaceState(null, "", link("/devices", filter));
    showDeploy();
    void refresher.now();
  };
  const showDeploy = (): void => {
    // Status and text choose no targets: only labels do.
    deploy.hidden = !filter.selector || filter.q !== "" || filter.status !== "";
    deploy.href = link("/deploy", { selector: filter.selector });
  };
  showDeploy();
  let typing = 0;
  const text = (name: "q" | "selector", placeholder: string): HTMLInputElement => {
    const el = h("input", { type: "search", placeholder, spellcheck: "false", autocapitalize: "off", "data-search": name === "q", oninput: () => {
      filter[name] = el.value.trim();
      clearTimeout(typing);
      typing = setTimeout(changed, 300);
    } });
    el.value = filter[name];
    return el;
  };
  const states = select([["", "any"], ...deviceStatuses.map((s): [string, string] => [s, s])], filter.status, () => {
    filter.status = states.value;
    changed();
  });
  return {
    title: "Devices",
    el: h("section", null,
      heading("Devices", deploy),
      h("form", { class: "filter", role: "search", onsubmit: (e: Event) => { e.preventDefault(); changed(); } },
        field("Search", text("q", "id, serial, type")),
        field("Labels", text("selector", "site=berlin,ring!=canary")),
        field("Status", states)),
      refresher.alert.el, table.el, pager.el),
    wants: (e) => e.type.startsWith("kernex.device.") || e.type.startsWith("kernex.config."),
    refresher,
  };
}
