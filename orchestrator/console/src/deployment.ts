// One deployment with its targets.

import { get, newKey, post } from "./api";
import { what } from "./deployments";
import { type Child, confirmed, h, replace, Table, toast } from "./dom";
import { ago, bytes, facts, seconds, status, words } from "./format";
import { draw } from "./progress";
import { type Deployment, finalDeployment, type List, type Target, targetStates } from "./types";
import { act, field, heading, link, Pager, Refresher, select, type View } from "./view";

export function deploymentView(id: string): View {
  const path = `/deployments/${encodeURIComponent(id)}`;
  const title = h("span");
  const about = h("div");
  const bar = h("div", { class: "progress big" });
  const actions = h("div", { class: "actions" });
  let state = "", shown = "";
  const refresher = new Refresher(async (signal) => {
    const [d, list] = await Promise.all([
      get<Deployment>(path, {}, signal),
      get<List<Target>>(`${path}/targets`, { state, limit: pager.size, cursor: pager.cursor }, signal),
    ]);
    replace(title, what(d));
    replace(about, aboutDeployment(d));
    draw(bar, d, true);
    if (shown !== d.status) replace(actions, buttons(d));
    shown = d.status;
    table.show(list.items ?? []);
    pager.show(list);
    page.hidden = false;
  });
  const pager = new Pager(50, () => void refresher.now());
  const table = new Table<Target>("Targets", [
    { title: "Device", cell: (t) => h("a", { href: link(`/devices/${t.device_id}`) }, t.device_id) },
    { title: "State", cell: (t) => [status(t.state), t.step && !t.finished_at && h("span", { class: "muted" }, ` ${words(t.step)}`)] },
    { title: "Version", cell: (t) => [t.previous_version && h("span", { class: "muted" }, `${t.previous_version} → `), t.bundle_version] },
    { title: "Received", cell: (t) => t.bytes > 0 ? bytes(t.bytes) : h("span", { class: "muted" }, "–") },
    { title: "Took", cell: (t) => t.finished_at && t.duration_ms > 0 ? seconds(t.duration_ms / 1000) : h("span", { class: "muted" }, "–") },
    { title: "Problem", class: "wide", cell: problem },
  ], (t) => t.device_id, "No target in this state.");
  const states = select([["", "any"], ...targetStates.map((s): [string, string] => [s, words(s)])], "", () => {
    state = states.value;
    pager.reset();
    void refresher.now();
  });
  const button = (verb: string, danger: boolean, question: string, done: (d: Deployment) => Promise<void>, call: string): HTMLButtonElement => {
    const b: HTMLButtonElement = h("button", { class: danger ? "danger" : "", onclick: async () => {
      if (!await confirmed(verb, question, verb)) return;
      await act(b, refresher.alert, async () => done(await post<Deployment>(`${path}/${call}`, undefined, newKey())));
    } }, verb);
    return b;
  };
  const openNew = async (d: Deployment): Promise<void> => {
    location.hash = link(`/deployments/${d.id}`);
  };
  const buttons = (d: Deployment): Child => {
    if (!finalDeployment(d.status)) {
      return button("Cancel deployment", true, "Devices that have not begun are left as they are; those at work are told to stop where they still can.", async () => {
        toast("The deployment is being cancelled");
        await refresher.now();
      }, "cancel");
    }
    return [
      d.status !== "success" && button("Retry", false, "Deploy again to the devices on which this did not succeed?", openNew, "retry"),
      button("Roll back", true, "Take every device that this deployment changed back to what it had before?", openNew, "rollback"),
    ];
  };
  const head = heading("", actions);
  replace(head.querySelector("h1")!, title);
  const page = h("div", { hidden: true },
    h("div", { class: "card" }, bar, about),
    h("form", { class: "filter", onsubmit: (e: Event) => e.preventDefault() }, h("h2", null, "Targets"), field("State", states)),
    table.el, pager.el);
  return {
    title: "Deployment",
    el: h("section", null, h("p", { class: "crumb" }, h("a", { href: "#/deployments" }, "Deployments"), " ", h("code", null, id)), head, refresher.alert.el, page),
    wants: (e) => e.subject === id,
    refresher,
  };
}

function aboutDeployment(d: Deployment): Child {
  return [
    d.description && h("p", null, d.description),
    d.reason && h("p", { class: "error" }, d.reason),
    facts(
      ["Status", status(d.status)],
      ["Targets", [d.total, d.selector ? [" by ", h("code", null, d.selector)] : ""]],
      ["Created", [ago(d.created_at), ` by ${d.created_by}`]],
      ["Started", d.started_at ? ago(d.started_at) : ""],
      d.finished_at ? ["Finished", ago(d.finished_at)] : ["Deadline", ago(d.deadline)],
    ),
  ];
}

function problem(t: Target): Child {
  const text = t.error || words(t.error_code);
  if (!t.output) return text ? h("span", { class: "error" }, text) : null;
  return h("details", null, h("summary", { class: text ? "error" : "" }, text || "output"), h("pre", null, t.output));
}
