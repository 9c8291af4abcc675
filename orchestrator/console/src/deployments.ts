// The list of deployments.

import { get } from "./api";
import { h, Table } from "./dom";
import { ago, status, words } from "./format";
import { progress } from "./progress";
import { type Deployment, deploymentStatuses, type List } from "./types";
import { field, heading, link, Pager, Refresher, select, type View } from "./view";

export function what(d: Deployment): string {
  const bundle = [d.bundle, d.bundle_version].filter(Boolean).join(" ") || "the bundle before";
  return d.kind === "rollback" ? `Roll back to ${bundle}` : bundle;
}

export function deploymentsView(query: URLSearchParams): View {
  let wanted = query.get("status") ?? "";
  const table = new Table<Deployment>("Deployments", [
    { title: "Deployment", cell: (d) => [h("a", { href: link(`/deployments/${d.id}`) }, what(d)), d.description && h("small", null, d.description)] },
    { title: "Status", cell: (d) => status(d.status) },
    { title: "Progress", class: "wide", cell: (d) => progress(d) },
    { title: "Created", cell: (d) => [ago(d.created_at), h("small", null, d.created_by)] },
  ], (d) => d.id, "No deployment yet.");
  const refresher = new Refresher(async (signal) => {
    const list = await get<List<Deployment>>("/deployments", { status: wanted, limit: pager.size, cursor: pager.cursor }, signal);
    table.show(list.items ?? []);
    pager.show(list);
  });
  const pager = new Pager(25, () => void refresher.now());
  const states = select([["", "any"], ...deploymentStatuses.map((s): [string, string] => [s, words(s)])], wanted, () => {
    wanted = states.value;
    pager.reset();
    history.replaceState(null, "", link("/deployments", { status: wanted }));
    void refresher.now();
  });
  return {
    title: "Deployments",
    el: h("section", null,
      heading("Deployments", h("a", { class: "button primary", href: "#/deploy" }, "New deployment")),
      h("form", { class: "filter", onsubmit: (e: Event) => e.preventDefault() }, field("Status", states)),
      refresher.alert.el, table.el, pager.el),
    wants: (e) => e.type.startsWith("kernex.deployment."),
    refresher,
  };
}
