// Elements without markup: data only ever becomes text nodes and attributes.

export type Child = Node | string | number | null | undefined | false | Child[];

type Props = { [name: string]: string | number | boolean | null | undefined | ((e: any) => void) };

// h makes an element. A function is a listener (onclick), true an empty
// attribute; false, null and undefined leave the attribute out.
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props | null = null, ...children: Child[]): HTMLElementTagNameMap[K] {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (typeof value === "function") el.addEventListener(name.slice(2), value);
    else if (value === true) el.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) el.setAttribute(name, String(value));
  }
  add(el, children);
  return el;
}

function add(el: Node, children: Child[]): void {
  for (const c of children) {
    if (Array.isArray(c)) add(el, c);
    else if (c instanceof Node) el.appendChild(c);
    else if (c !== null && c !== undefined && c !== false) el.appendChild(document.createTextNode(String(c)));
  }
}

export function replace(el: Element, ...children: Child[]): void {
  const fresh = document.createDocumentFragment();
  add(fresh, children);
  el.replaceChildren(fresh);
}

export interface Column<T> {
  title: string;
  cell: (item: T) => Child;
  class?: string;
}

// Table shows a list and keeps the rows of items that did not change, so that a
// live update moves neither the focus nor a selection of text.
export class Table<T> {
  readonly el: HTMLElement;
  private body = h("tbody");
  private rows = new Map<string, { json: string; tr: HTMLTableRowElement }>();
  private empty: HTMLElement;

  constructor(label: string, private columns: Column<T>[], private key: (item: T) => string, empty: Child) {
    this.empty = h("p", { class: "empty", hidden: true }, empty);
    this.el = h("div", { class: "table" },
      h("table", { "aria-label": label },
        h("thead", null, h("tr", null, columns.map((c) => h("th", { scope: "col", class: c.class }, c.title)))),
        this.body),
      this.empty);
  }

  show(items: T[]): void {
    const keys = new Set(items.map(this.key));
    // Rows that go are taken out first: moving a row that stays would blur it.
    for (const [key, row] of this.rows) if (!keys.has(key)) row.tr.remove();
    const kept = new Map<string, { json: string; tr: HTMLTableRowElement }>();
    let at: Element | null = this.body.firstElementChild;
    for (const item of items) {
      const key = this.key(item);
      const row = this.rows.get(key) ?? { json: "", tr: h("tr") };
      const json = JSON.stringify(item);
      if (row.json !== json) this.fill(row.tr, item);
      row.json = json;
      kept.set(key, row);
      if (row.tr === at) at = at.nextElementSibling;
      else this.body.insertBefore(row.tr, at);
    }
    this.rows = kept;
    this.empty.hidden = items.length > 0;
    this.el.classList.toggle("is-empty", items.length === 0);
  }

  private fill(tr: HTMLTableRowElement, item: T): void {
    const focused = tr.contains(document.activeElement) ? [...tr.querySelectorAll<HTMLElement>("a, button, summary")].indexOf(document.activeElement as HTMLElement) : -1;
    const open = tr.querySelector("details")?.open;
    replace(tr, this.columns.map((c) => {
      const cell = h("div", null, c.cell(item));
      return h("td", { "data-label": c.title, class: cell.hasChildNodes() ? c.class : `${c.class ?? ""} blank` }, cell);
    }));
    const details = tr.querySelector("details");
    if (details && open) details.open = true;
    if (focused >= 0) tr.querySelectorAll<HTMLElement>("a, button, summary")[focused]?.focus();
  }
}

// confirmed asks before something that cannot be taken back.
export function confirmed(title: string, text: string, verb: string): Promise<boolean> {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-label": title },
      h("form", { method: "dialog" },
        h("h2", null, title), h("p", null, text),
        h("div", { class: "actions" },
          h("button", { value: "no", autofocus: true }, "Keep as it is"),
          h("button", { value: "yes", class: "danger" }, verb))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

let toasts: HTMLElement | null = null;

// toast says briefly what was done, to screen readers too.
export function toast(text: string): void {
  if (!toasts) document.body.append(toasts = h("div", { class: "toasts", role: "status", "aria-live": "polite" }));
  const t = h("p", null, text);
  toasts.append(t);
  setTimeout(() => t.remove(), 5000);
}

// Alert is a place for one error, read out when it appears.
export class Alert {
  readonly el = h("p", { class: "alert", role: "alert", hidden: true });

  show(err: unknown): void {
    this.el.textContent = err instanceof Error ? err.message : String(err);
    this.el.hidden = false;
  }

  clear(): void {
    if (this.el.hidden) return;
    this.el.hidden = true;
    this.el.textContent = "";
  }
}
