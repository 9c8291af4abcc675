// The form that changes a device's configuration.

import { put } from "./api";
import { Alert, h, replace, toast } from "./dom";
import { ago, facts, status } from "./format";
import type { Config } from "./types";
import { act, field, select } from "./view";

export interface ConfigForm {
  el: HTMLElement;
  show: (c: Config) => void;
}

export function configForm(path: string): ConfigForm {
  let current: Config | null = null; // as in the inputs; If-Match guards this version
  let newest: Config | null = null;
  const alert = new Alert();
  const interval = h("input", { type: "number", min: 1, max: 86400, step: 1, required: true, inputmode: "numeric", oninput: () => edited() });
  const level = select(["debug", "info", "warn", "error"].map((l): [string, string] => [l, l]), "info", () => edited());
  const save = h("button", { class: "primary", disabled: true }, "Save");
  const undo = h("button", { type: "button", disabled: true, onclick: () => newest && fill(newest) }, "Discard");
  const stand = h("div");
  const dirty = (): boolean => current !== null && (interval.valueAsNumber !== current.heartbeat_interval_s || level.value !== current.log_level);
  const edited = (): void => {
    save.disabled = undo.disabled = !dirty();
  };
  const fill = (c: Config): void => {
    current = c;
    interval.value = String(c.heartbeat_interval_s);
    level.value = c.log_level;
    alert.clear();
    edited();
  };
  const show = (c: Config): void => {
    newest = c;
    replace(stand, facts(
      ["Desired", `version ${c.version}`],
      ["Reported", c.reported_version ? [`version ${c.reported_version} `, status(c.outcome)] : "not yet"],
      ["Heartbeat timeout", `${c.heartbeat_timeout_s} s`],
      ["Deploy timeout", `${c.deploy_timeout_s} s`],
      ["Changed", [ago(c.updated_at), c.updated_by && ` by ${c.updated_by}`]],
      ...(c.error ? [["Error", h("span", { class: "error" }, c.error)] as [string, HTMLElement]] : []),
    ));
    if (!dirty()) fill(c);
    else if (current && c.version !== current.version) {
      alert.show(`Meanwhile this configuration became version ${c.version}. Discard your change to see it.`);
    }
  };
  const submit = (e: Event): void => {
    e.preventDefault();
    const was = current;
    if (!was || !dirty()) return;
    const change: Record<string, unknown> = {};
    if (interval.valueAsNumber !== was.heartbeat_interval_s) change.heartbeat_interval_s = interval.valueAsNumber;
    if (level.value !== was.log_level) change.log_level = level.value;
    void act(save, alert, async () => {
      const c = await put<Config>(`${path}/config`, change, `"${was.version}"`);
      fill(c);
      show(c);
      toast(`Configuration saved as version ${c.version}`);
    }).then(edited);
  };
  return {
    el: h("div", null, stand,
      h("form", { class: "filter", onsubmit: submit },
        field("Heartbeat every (seconds)", interval), field("Log level", level),
        h("div", { class: "actions" }, save, undo)),
      alert.el),
    show,
  };
}
