// Calls of the admin API with the signed-in token.

const base = "/api/v1";
const storageKey = "kernex.token";

// Problem is an error that the API answered, or "network" without an answer.
export class Problem extends Error {
  constructor(readonly status: number, readonly code: string, detail: string) {
    super(detail);
  }
}

// The token lives as long as the tab: sessionStorage is neither shared with
// other tabs nor kept when the browser closes.
let token = sessionStorage.getItem(storageKey) ?? "";
let refused: (detail: string) => void = () => {};

export const signedIn = (): boolean => token !== "";

export function signIn(t: string): void {
  token = t;
  sessionStorage.setItem(storageKey, t);
}

export function signOut(): void {
  token = "";
  sessionStorage.removeItem(storageKey);
}

// onRefused sets what happens when the API stops taking the token.
export function onRefused(fn: (detail: string) => void): void {
  refused = fn;
}

// skew is how far the server's clock is ahead of this one, in milliseconds;
// relative times would lie without it. Date has whole seconds, so less is noise.
let skew = 0;
export const now = (): number => Date.now() + skew;

function noteDate(resp: Response): void {
  const d = Date.parse(resp.headers.get("Date") ?? "") - Date.now();
  if (!Number.isNaN(d)) skew = Math.abs(d) > 2000 ? d : 0;
}

export interface Call {
  method?: string;
  query?: Record<string, string | number | undefined>;
  body?: unknown;
  key?: string; // Idempotency-Key
  ifMatch?: string;
  token?: string; // to try instead of the signed-in one
  signal?: AbortSignal;
}

// request does one call and gives back its answer; an error is a Problem.
export async function request(path: string, c: Call = {}, headers: Record<string, string> = {}): Promise<Response> {
  const q = new URLSearchParams();
  for (const [k, v] of Object.entries(c.query ?? {})) if (v !== undefined && v !== "") q.set(k, String(v));
  const h = new Headers({ Accept: "application/json", ...headers });
  const used = c.token ?? token;
  try {
    h.set("Authorization", `Bearer ${used}`);
  } catch {
    throw new Problem(401, "unauthorized", "The token holds characters that no token has: copy it again.");
  }
  if (c.body !== undefined) h.set("Content-Type", "application/json");
  if (c.key) h.set("Idempotency-Key", c.key);
  if (c.ifMatch) h.set("If-Match", c.ifMatch);
  let resp: Response;
  try {
    resp = await fetch(base + path + (q.size ? `?${q}` : ""), {
      method: c.method ?? "GET", headers: h, signal: c.signal,
      body: c.body === undefined ? undefined : JSON.stringify(c.body),
      credentials: "omit", cache: "no-store", redirect: "error",
    });
  } catch (err) {
    if (err instanceof DOMException && err.name === "AbortError") throw err;
    throw new Problem(0, "network", "The server does not answer. Is it running, and is the network up?");
  }
  noteDate(resp);
  if (resp.ok) return resp;
  const problem = await problemOf(resp);
  if (resp.status === 401 && c.token === undefined && used === token && token !== "") refused(problem.message);
  throw problem;
}

async function problemOf(resp: Response): Promise<Problem> {
  let p: { detail?: unknown; code?: unknown } = {};
  try {
    p = await resp.json();
  } catch {
    // A proxy's page: the status is all there is.
  }
  const code = typeof p.code === "string" ? p.code : "unknown";
  const detail = typeof p.detail === "string" && p.detail ? p.detail : `The server answered ${resp.status} ${resp.statusText}`.trim();
  return new Problem(resp.status, code, detail);
}

export async function get<T>(path: string, query: Call["query"] = {}, signal?: AbortSignal): Promise<T> {
  return (await request(path, { query, signal })).json();
}

// post sends key as Idempotency-Key: the same key with the same body is done once.
export async function post<T>(path: string, body: unknown, key: string): Promise<T> {
  return (await request(path, { method: "POST", body, key })).json();
}

export async function put<T>(path: string, body: unknown, ifMatch: string): Promise<T> {
  return (await request(path, { method: "PUT", body, ifMatch })).json();
}

// check asks whether the API takes a token, without signing in.
export async function check(t: string): Promise<void> {
  await request("/devices", { query: { limit: 1 }, token: t });
}

// newKey makes an Idempotency-Key. crypto.randomUUID exists only over HTTPS.
export function newKey(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
}
