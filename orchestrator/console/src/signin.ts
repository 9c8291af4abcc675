// The page that asks for the token.

import { check, Problem, signIn } from "./api";
import { Alert, h } from "./dom";
import { field } from "./view";

export function signInPage(why: string, done: () => void): HTMLElement {
  const alert = new Alert();
  if (why) alert.show(why);
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true, placeholder: "kx_…" });
  const button = h("button", { class: "primary" }, "Sign in");
  const submit = async (e: Event): Promise<void> => {
    e.preventDefault();
    const token = input.value.trim();
    button.disabled = true;
    alert.clear();
    try {
      await check(token);
      signIn(token);
      done();
    } catch (err) {
      alert.show(refusal(err));
      input.select();
    } finally {
      button.disabled = false;
    }
  };
  queueMicrotask(() => input.focus());
  return h("main", { class: "signin" },
    h("form", { onsubmit: submit },
      h("h1", null, "Kernex"),
      alert.el,
      field("API token", input, "The first one is in the file admin.token of the data folder. It is kept in this tab only."),
      button));
}

function refusal(err: unknown): string {
  if (err instanceof Problem && err.status === 401) return `This token was refused: ${err.message}`;
  return err instanceof Error ? err.message : String(err);
}
