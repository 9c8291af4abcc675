// What every page of the console is made of.

import { Alert, h } from "./dom";
import type { CloudEvent, List } from "./types";

// View is one page. load fetches what it shows; it runs on opening, after
// events that the view wants, and now and then.
export interface View {
  title: string;
  el: HTMLElement;
  wants: (e: CloudEvent) => boolean;
  refresher: Refresher;
}

const apart = 1000; // ms between two refreshes that events ask for

// Refresher runs one load at a time and shows its error. A fleet that sends
// thousands of events a second causes one load a second.
export class Refresher {
  readonly alert = new Alert();
  private running: AbortController | null = null;
  private timer = 0;
  private ended = 0;
  private again = false;
  private closed = false;

  constructor(private load: (signal: AbortSignal) => Promise<void>) {}

  // now loads at once; a load under way is given up, its answer is out of date.
  async now(): Promise<void> {
    if (this.closed) return;
    clearTimeout(this.timer);
    this.timer = 0;
    this.again = false;
    this.running?.abort();
    const own = this.running = new AbortController();
    try {
      await this.load(own.signal);
      this.alert.clear();
    } catch (err) {
      if (own.signal.aborted) return;
      this.alert.show(err);
    }
    if (this.running !== own) return;
    this.running = null;
    this.ended = Date.now();
    if (this.again) this.soon();
  }

  // soon loads within a second or so, once for however many calls.
  soon(): void {
    if (this.closed || this.timer) return;
    if (this.running) {
      this.again = true;
      return;
    }
    this.timer = setTimeout(() => void this.now(), Math.max(150, this.ended + apart - Date.now()));
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    this.running?.abort();
  }
}

// Pager goes through a list by its cursors.
export class Pager {
  readonly el: HTMLElement;
  cursor = "";
  private before: string[] = [];
  private next = "";
  private text = h("span", { class: "muted" });
  private back = h("button", { type: "button", onclick: () => this.go(this.before.pop() ?? "") }, "Previous");
  private on = h("button", { type: "button", onclick: () => { this.before.push(this.cursor); this.go(this.next); } }, "Next");

  constructor(readonly size: number, private changed: () => void) {
    this.el = h("nav", { class: "pager", "aria-label": "Pages" }, this.text, this.back, this.on);
  }

  reset(): void {
    this.before = [];
    this.cursor = "";
  }

  show(l: List<unknown>): void {
    const n = l.items?.length ?? 0;
    const first = this.before.length * this.size + 1;
    this.next = l.next_cursor;
    this.text.textContent = n === 0 ? "" : n === l.total ? `${l.total}` + " in all" : `${first}–${first + n - 1} of ${l.total}`;
    this.back.disabled = this.before.length === 0;
    this.on.disabled = this.next === "";
    this.back.hidden = this.on.hidden = this.back.disabled && this.on.disabled;
  }

  private go(cursor: string): void {
    this.cursor = cursor;
    this.changed();
  }
}

let fields = 0;

// field puts a label to an input.
export function field(label: string, input: HTMLElement, hint = ""): HTMLElement {
  input.id = `f${++fields}`;
  if (hint) input.setAttribute("aria-describedby", `${input.id}h`);
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, hint && h("small", { id: `${input.id}h` }, hint));
}

export function select(options: [string, string][], value: string, onchange: (e: Event) => void): HTMLSelectElement {
  const el = h("select", { onchange }, options.map(([v, text]) => h("option", { value: v }, text)));
  el.value = value;
  return el;
}

export function heading(title: string, ...actions: (HTMLElement | false)[]): HTMLElement {
  return h("header", { class: "head" }, h("h1", { tabindex: -1 }, title), h("div", { class: "actions" }, actions));
}

// link makes the hash of a page.
export function link(path: string, query: Record<string, string> = {}): string {
  const q = new URLSearchParams(Object.entries(query).filter(([, v]) => v));
  return `#${path}${q.size ? `?${q}` : ""}`;
}

// act runs what a button does: once at a time, its error shown.
export async function act(button: HTMLButtonElement, alert: Alert, fn: () => Promise<void>): Promise<void> {
  button.disabled = true;
  alert.clear();
  try {
    await fn();
  } catch (err) {
    alert.show(err);
  } finally {
    button.disabled = false;
  }
}
