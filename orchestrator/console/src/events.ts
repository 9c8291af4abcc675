// Live updates: one stream of GET /events for the whole console, by fetch
// because EventSource cannot send the Authorization header.

import { Problem, request } from "./api";
import type { CloudEvent } from "./types";

const firstWait = 1000; // ms; doubles
const longestWait = 30_000;
const silence = 45_000; // the server gives a sign of life every 15 s

export type Link = "connecting" | "live" | "broken";

export interface Listener {
  event: (e: CloudEvent) => void;
  link: (state: Link) => void;
}

// follow keeps a stream open until the returned function is called. A new
// connection goes on after the last event that was seen.
export function follow(l: Listener): () => void {
  const stop = new AbortController();
  void run(l, stop.signal);
  return () => stop.abort();
}

async function run(l: Listener, stop: AbortSignal): Promise<void> {
  let last = "";
  let wait = firstWait;
  l.link("connecting");
  while (!stop.aborted) {
    const one = new AbortController();
    const end = (): void => one.abort();
    stop.addEventListener("abort", end);
    try {
      const headers: Record<string, string> = { Accept: "text/event-stream" };
      if (last) headers["Last-Event-ID"] = last;
      const resp = await request("/events", { signal: one.signal }, headers);
      l.link("live");
      await read(resp, end, (id, data) => {
        wait = firstWait;
        const seen = last !== "" && Number(id) <= Number(last);
        if (id) last = id;
        if (data && !seen) l.event(JSON.parse(data) as CloudEvent);
      });
    } catch (err) {
      if (err instanceof Problem && err.status === 401) return; // the sign-in page is up
      if (err instanceof Problem && err.status === 400) last = "";
    } finally {
      stop.removeEventListener("abort", end);
    }
    if (stop.aborted) return;
    l.link("broken");
    await pause(wait * (0.75 + Math.random() / 2), stop);
    wait = Math.min(2 * wait, longestWait);
  }
}

// read takes a stream apart: fields up to an empty line are one event. One that
// was cut short is dropped, it comes again.
async function read(resp: Response, end: () => void, fn: (id: string, data: string) => void): Promise<void> {
  const reader = resp.body!.pipeThrough(new TextDecoderStream()).getReader();
  let timer = setTimeout(end, silence);
  let rest = "", id = "", data: string[] = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(end, silence);
      const lines = (rest + value).split("\n");
      rest = lines.pop()!;
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (id || data.length) fn(id, data.join("\n"));
          id = "";
          data = [];
        } else if (line.startsWith("id:")) id = line.slice(3).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  } finally {
    clearTimeout(timer);
  }
}

function pause(ms: number, stop: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      stop.removeEventListener("abort", done);
      window.removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    stop.addEventListener("abort", done);
    window.addEventListener("online", done); // the network is back: no need to wait
  });
}
