// The bar that shows the targets of a deployment by state.

import { h, replace } from "./dom";
import { words } from "./format";
import { type Deployment, targetStates } from "./types";

export function progress(d: Deployment, legend = false): HTMLElement {
  const el = h("div", { class: "progress" });
  draw(el, d, legend);
  return el;
}

export function draw(el: HTMLElement, d: Deployment, legend: boolean): void {
  const counts = targetStates.map((s) => [s, d.progress?.[s] ?? 0] as const).filter(([, n]) => n > 0);
  const text = counts.map(([s, n]) => `${n} ${words(s)}`).join(", ") || "no targets";
  const bar = h("div", { class: "bar", role: "img", "aria-label": text, title: text }, counts.map(([s, n]) => {
    const part = h("span", { class: `s-${s}` });
    part.style.flexGrow = String(n); // by the object model: the policy allows no style attribute
    return part;
  }));
  const done = d.progress?.["succeeded"] ?? 0;
  replace(el, bar, legend
    ? h("ul", { class: "legend" }, counts.map(([s, n]) => h("li", null, h("i", { class: `s-${s}` }), `${words(s)} `, h("b", null, n))))
    : h("span", { class: "count" }, `${done}/${d.total}`));
}
