// The list of bundles.

import { get } from "./api";
import { h, Table } from "./dom";
import { ago, bytes, short } from "./format";
import type { Bundle, List } from "./types";
import { heading, link, Pager, Refresher, type View } from "./view";

export function bundlesView(): View {
  const table = new Table<Bundle>("Bundles", [
    { title: "Bundle", cell: (b) => [b.name, " ", h("b", null, b.version)] },
    { title: "Size", cell: (b) => bytes(b.size) },
    { title: "Release", cell: (b) => short(b.release) },
    { title: "Signed by", cell: (b) => b.signed_by ? h("code", null, b.signed_by) : h("span", { class: "muted" }, "unsigned") },
    { title: "Uploaded", cell: (b) => [ago(b.created_at), h("span", { class: "muted" }, ` by ${b.created_by}`)] },
    { title: "", class: "end", cell: (b) => h("a", { class: "button small", href: link("/deploy", { bundle: b.name, version: b.version }), "aria-label": `Deploy ${b.name} ${b.version}` }, "Deploy") },
  ], (b) => b.id, ["No bundle was uploaded yet. Try ", h("code", null, "kernex bundle push DIR"), "."]);
  const refresher = new Refresher(async (signal) => {
    const list = await get<List<Bundle>>("/bundles", { limit: pager.size, cursor: pager.cursor }, signal);
    table.show(list.items ?? []);
    pager.show(list);
  });
  const pager = new Pager(50, () => void refresher.now());
  return {
    title: "Bundles",
    el: h("section", null, heading("Bundles"), refresher.alert.el, table.el, pager.el),
    wants: (e) => e.type.startsWith("kernex.bundle."),
    refresher,
  };
}
