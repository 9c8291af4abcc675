// One device: what it is, its configuration, what was deployed to it.

import { get, newKey, post } from "./api";
import { configForm } from "./config";
import { type Child, confirmed, h, replace, Table, toast } from "./dom";
import { ago, facts, health, labels, seconds, short, status, words } from "./format";
import type { Config, Deployment, Device, HistoryEntry, List } from "./types";
import { act, heading, link, Pager, Refresher, type View } from "./view";

export function deviceView(id: string): View {
  const path = `/devices/${encodeURIComponent(id)}`;
  const about = h("div");
  const hardware = h("div");
  const actions = h("div", { class: "actions" });
  const form = configForm(path);
  let shown = "", shownHardware = "";
  const refresher = new Refresher(async (signal) => {
    const [device, config, list] = await Promise.all([
      get<Device>(path, {}, signal), get<Config>(`${path}/config`, {}, signal),
      get<List<HistoryEntry>>(`${path}/bundle-history`, { limit: pager.size, cursor: pager.cursor }, signal),
    ]);
    replace(about, aboutDevice(device));
    const json = JSON.stringify(device.hardware_metadata);
    if (shownHardware !== json) replace(hardware, aboutHardware(device)); // it may be open
    shownHardware = json;
    if (shown !== device.status) replace(actions, credentialActions(device));
    shown = device.status;
    form.show(config);
    history.show((list.items ?? []).map((e) => ({ ...e, running: e.bundle_name === device.bundle_name && e.bundle_version === device.bundle_version })));
    pager.show(list);
    page.hidden = false;
  });
  const credentialActions = (d: Device): HTMLElement[] => {
    const verb = { pending: "approve", quarantined: "release" }[d.status];
    const deploy = h("a", { class: "button", href: link("/deploy", { devices: id }) }, "Deploy");
    if (d.status === "revoked") return [];
    if (!verb) return [deploy];
    const button = h("button", { class: "primary", onclick: () => act(button, refresher.alert, async () => {
      await post(`${path}/${verb}`, undefined, newKey());
      toast(`${id}: ${verb === "approve" ? "approved" : "released"}`);
      await refresher.now();
    }) }, verb === "approve" ? "Approve" : "Release");
    return [button];
  };
  const back = async (e: HistoryEntry, button: HTMLButtonElement): Promise<void> => {
    if (!await confirmed("Roll back", `Take ${id} back to ${e.bundle_name} ${e.bundle_version}?`, "Roll back")) return;
    await act(button, refresher.alert, async () => {
      const d = await post<Deployment>("/devices/rollback", { bundle: e.bundle_name, bundle_version: e.bundle_version, target_device_ids: [id] }, newKey());
      location.hash = link(`/deployments/${d.id}`);
    });
  };
  const history = new Table<HistoryEntry & { running: boolean }>("Bundle history", [
    { title: "Bundle", cell: (e) => [e.bundle_name, " ", h("b", null, e.bundle_version)] },
    { title: "Result", cell: (e) => [status(e.status), e.late && h("span", { class: "muted" }, " late"), e.error && h("small", { class: "error" }, e.error)] },
    { title: "When", cell: (e) => ago(e.deployed_at) },
    { title: "Took", cell: (e) => seconds(e.duration_s) },
    { title: "Deployment", cell: (e) => [h("a", { href: link(`/deployments/${e.deployment_id}`) }, short(e.deployment_id)), e.kind !== "deploy" && ` ${e.kind}`] },
    { title: "", class: "end", cell: (e) => {
      if (e.running) return h("span", { class: "muted" }, "running");
      if (e.status !== "success") return null;
      const button = h("button", { class: "small", onclick: () => back(e, button), "aria-label": `Roll back to ${e.bundle_name} ${e.bundle_version}` }, "Roll back to this");
      return button;
    } },
  ], (e) => `${e.deployment_id} ${e.bundle_id} ${e.deployed_at}`, "Nothing was deployed to this device yet.");
  const pager = new Pager(20, () => void refresher.now());
  const page = h("div", { hidden: true },
    h("div", { class: "card" }, about, hardware),
    h("section", { class: "card" }, h("h2", null, "Configuration"), form.el),
    h("section", null, h("h2", null, "Bundle history"), history.el, pager.el));
  return {
    title: id,
    el: h("section", null,
      h("p", { class: "crumb" }, h("a", { href: "#/devices" }, "Devices")),
      heading(id, actions), refresher.alert.el, page),
    wants: (e) => e.subject === id || e.data?.device_id === id,
    refresher,
  };
}

function aboutDevice(d: Device): HTMLElement {
  return h("div", null,
    d.description && h("p", null, d.description),
    facts(
      ["Status", status(d.status)],
      ["Health", health(d)],
      ["Last heartbeat", ago(d.last_heartbeat)],
      ["Running", d.bundle_name ? [d.bundle_name, " ", h("b", null, d.bundle_version)] : ""],
      ["Type", d.device_type],
      ["Serial", d.serial],
      ["System", [d.os, d.arch].filter(Boolean).join(" / ")],
      ["Agent", d.agent_version],
      ["Up for", d.uptime_s ? seconds(d.uptime_s) : ""],
      ["CPU", d.cpu_pct === null ? "" : `${d.cpu_pct.toFixed(1)} %`],
      ["Memory", d.memory_mb === null ? "" : `${Math.round(d.memory_mb)} MB`],
      ["Disk", d.disk_pct === null ? "" : `${d.disk_pct.toFixed(0)} % used`],
      ["Labels", labels(d.labels)],
      ["Enrolled", ago(d.created_at)],
      ["Key", [words(d.key_type), " ", d.fingerprint && h("code", { title: d.fingerprint }, d.fingerprint.slice(0, 23))]],
    ));
}

function aboutHardware(d: Device): Child {
  const all = Object.entries(d.hardware_metadata ?? {});
  return all.length > 0 && h("details", null, h("summary", null, "Hardware"),
    facts(...all.map(([k, v]): [string, string] => [k, typeof v === "string" ? v : JSON.stringify(v)])));
}
