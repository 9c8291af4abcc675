// The form that makes a deployment.

import { get, newKey, post } from "./api";
import { Alert, h, replace } from "./dom";
import { bytes, seconds, words } from "./format";
import type { Bundle, Deployment, List } from "./types";
import { act, field, heading, link, Refresher, select, type View } from "./view";

interface Plan {
  devices: number;
  bytes: number;
  duration_s: number;
  refused: { device_id: string; code: string; reason: string }[] | null;
}

type Mode = "selector" | "devices" | "fleet";

const shownRefusals = 20;

export function deployView(query: URLSearchParams): View {
  let mode: Mode = query.get("devices") ? "devices" : "selector";
  let bundles: Bundle[] = [];
  let key = "", keyOf = "";
  const alert = new Alert();
  const plan = h("div", { "aria-live": "polite" });
  const touched = (): void => replace(plan);
  const name = select([], "", () => { versions(); touched(); });
  const version = select([], "", touched);
  const selector = h("input", { value: query.get("selector"), placeholder: "site=berlin,ring!=canary", spellcheck: "false", autocapitalize: "off", oninput: touched });
  const devices = h("textarea", { rows: 3, spellcheck: "false", autocapitalize: "off", oninput: touched }, query.get("devices") ?? "");
  const description = h("input", { maxlength: 1024 });
  const bySelector = field("Labels", selector, "Every device that matches at the moment of deploying.");
  const byDevice = field("Device ids", devices, "Separated by spaces, commas or lines.");
  const all = h("p", { class: "warning" }, "Every device of the fleet gets this bundle.");
  const setMode = (m: Mode): void => {
    mode = m;
    bySelector.hidden = m !== "selector";
    byDevice.hidden = m !== "devices";
    all.hidden = m !== "fleet";
    touched();
  };
  const radio = (m: Mode, text: string): HTMLElement =>
    h("label", { class: "radio" }, h("input", { type: "radio", name: "mode", value: m, checked: mode === m, onchange: () => setMode(m) }), text);
  setMode(mode);
  const fill = (el: HTMLSelectElement, values: string[], value: string): void => {
    replace(el, values.map((v) => h("option", { value: v }, v)));
    el.value = values.includes(value) ? value : values[0] ?? "";
  };
  const versions = (wanted = ""): void => fill(version, bundles.filter((b) => b.name === name.value).map((b) => b.version), wanted);
  const refresher = new Refresher(async (signal) => {
    const list = await get<List<Bundle>>("/bundles", { limit: 1000 }, signal);
    const first = bundles.length === 0;
    bundles = list.items ?? [];
    const [wantName, wantVersion] = first ? [query.get("bundle") ?? "", query.get("version") ?? ""] : [name.value, version.value];
    fill(name, [...new Set(bundles.map((b) => b.name))].sort(), wantName);
    versions(wantVersion);
    none.hidden = bundles.length > 0;
    check.disabled = deploy.disabled = bundles.length === 0;
  });
  const body = (): Record<string, unknown> => {
    const b: Record<string, unknown> = { bundle: name.value, bundle_version: version.value };
    const text = selector.value.trim();
    const ids = [...new Set(devices.value.split(/[\s,;]+/).filter(Boolean))];
    if (mode === "devices" && ids.length === 0) throw new Error("Name at least one device.");
    if (mode === "selector" && !text) throw new Error("Name at least one label, or choose the whole fleet.");
    if (mode === "devices") b.target_devices = ids;
    else b.selector = mode === "fleet" ? "" : text;
    if (description.value.trim()) b.description = description.value.trim();
    return b;
  };
  const check = h("button", { type: "button", disabled: true, onclick: () => act(check, alert, async () => showPlan(plan, await post<Plan>("/deployments/plan", body(), newKey()))) }, "Check");
  const deploy = h("button", { class: "primary", disabled: true }, "Deploy");
  const submit = (e: Event): void => {
    e.preventDefault();
    void act(deploy, alert, async () => {
      const b = body();
      // The same form sent again after a lost answer is the same deployment.
      const text = JSON.stringify(b);
      if (text !== keyOf) [key, keyOf] = [newKey(), text];
      const d = await post<Deployment>("/deployments", b, key);
      location.hash = link(`/deployments/${d.id}`);
    });
  };
  const none = h("p", { class: "warning", hidden: true }, "There is no bundle to deploy yet. Upload one with ", h("code", null, "kernex bundle push DIR"), ".");
  return {
    title: "New deployment",
    el: h("section", { class: "narrow" },
      h("p", { class: "crumb" }, h("a", { href: "#/deployments" }, "Deployments")),
      heading("New deployment"), refresher.alert.el, none,
      h("form", { class: "card stack", onsubmit: submit },
        h("div", { class: "pair" }, field("Bundle", name), field("Version", version)),
        h("fieldset", null, h("legend", null, "To"), h("div", { class: "radios" }, radio("selector", "Devices with labels"), radio("devices", "Named devices"), radio("fleet", "Whole fleet"))),
        bySelector, byDevice, all,
        field("Description", description),
        alert.el, plan,
        h("div", { class: "actions" }, deploy, check))),
    wants: (e) => e.type.startsWith("kernex.bundle."),
    refresher,
  };
}

function showPlan(el: HTMLElement, p: Plan): void {
  const refused = p.refused ?? [];
  replace(el, h("div", { class: "plan" },
    h("p", null, h("b", null, p.devices), p.devices === 1 ? " device" : " devices", ", ", bytes(p.bytes), " to download", p.duration_s > 0 && `, about ${seconds(p.duration_s)}`, ". Nothing is changed yet."),
    refused.length > 0 && h("details", null, h("summary", { class: "error" }, `${refused.length} would not run it`),
      h("ul", null, refused.slice(0, shownRefusals).map((r) => h("li", null, h("code", null, r.device_id), " ", r.reason || words(r.code))),
        refused.length > shownRefusals && h("li", null, `and ${refused.length - shownRefusals} more`)))));
}
