// The agent's HTTP interface. Every URL is relative to the page's, so that any path prefix of a proxy stays.

const SECONDS = 1000;
const PATIENCE = 15 * SECONDS; // longer than the agent itself looks for MongoDB
const HEALTH_PATIENCE = 6 * SECONDS;
const KEY = `maintenance-agent.token ${location.pathname}`; // agents behind one host keep theirs apart

/** The agent answered, and the answer is no. */
export class Problem extends Error {
  constructor(status, document) {
    super(explained(document) || `The agent answered ${status}.`);
    this.status = status;
    this.document = document;
  }
}

/** There was no answer, or none of the agent's own. */
export class Unreachable extends Error {}

function explained(document) {
  const listed = (document.errors ?? []).map((one) => (one.path ? `${one.path}: ${one.message}` : one.message));
  return [document.detail ?? document.title, ...listed].filter(Boolean).join(" ");
}

// ----------------------------------------------------------------------------------------------------------- the token

let memory = null; // where the browser keeps nothing for us

export function token() {
  try {
    return sessionStorage.getItem(KEY) ?? memory;
  } catch {
    return memory;
  }
}

export function keepToken(text) {
  memory = text;
  try {
    if (text === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, text);
  } catch {
    // Storage is switched off: the token lives as long as the page.
  }
}

/** A header carries bytes: those of the token in UTF-8. */
function bearer(text) {
  return `Bearer ${String.fromCharCode(...new TextEncoder().encode(text))}`;
}

// ------------------------------------------------------------------------------------------------------------ requests

async function request(path, options, patience) {
  try {
    return await fetch(path, {
      ...options, cache: "no-store", credentials: "same-origin", redirect: "error", signal: AbortSignal.timeout(patience),
    });
  } catch (error) {
    throw new Unreachable(error.name === "TimeoutError" ? `no answer within ${patience / SECONDS} s` : "no connection");
  }
}

async function ask(method, path, body, { as = token(), patience = PATIENCE } = {}) {
  const headers = as === null ? {} : { Authorization: bearer(as) };
  const options = { method, headers };
  if (method === "POST") {
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body ?? {});
  }
  const response = await request(path, options, patience);
  const type = response.headers.get("Content-Type") ?? "";
  if (!type.includes("json")) throw new Unreachable(`something in between answered ${response.status}`);
  let document;
  try {
    document = await response.json();
  } catch {
    throw new Unreachable("the answer broke off");
  }
  if (response.ok) return document;
  throw new Problem(response.status, document);
}

const part = encodeURIComponent;
const BASE = "api/maintenance";

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

/** The document of an item, as the API takes it: its `_id` in Extended JSON, which keeps its type. */
const documentOf = (item) => ({ database: item.database, collection: item.collection, id: JSON.stringify(item.id) });

const WAIT = 8 * SECONDS; // an answer waits this long for the end of a run; then the page asks again
const START = { patience: PATIENCE + WAIT };
const wait = `${WAIT / SECONDS}s`;
const one = (job) => (job ? `jobs/${part(job)}/` : "");

export const api = {
  status: (options) => ask("GET", `${BASE}/status`, null, options),
  runs: (filter) => ask("GET", `${BASE}/runs${query(filter)}`),
  run: (id) => ask("GET", `${BASE}/runs/${part(id)}`),
  items: (id, after, limit) => ask("GET", `${BASE}/runs/${part(id)}/items${query({ after, limit })}`),

  // Of one job, or (null) of all: answers a run, or a pass with its runs.
  preview: (job) => ask("POST", `${BASE}/${one(job)}run`, { dry_run: true, wait }, START),
  start: (job, accept = []) => ask("POST", `${BASE}/${one(job)}run`, { accept }, START),
  pause: (job) => ask("POST", `${BASE}/${one(job)}pause`),
  resume: (job) => ask("POST", `${BASE}/${one(job)}resume`),

  apply: (plan) => ask("POST", `${BASE}/runs/${part(plan)}/apply`, { wait: "1s" }, START),
  restore: (run, item) => ask(
    "POST", `${BASE}/runs/${part(run)}/restore`, { wait, ...(item ? { item: JSON.stringify(item.id) } : {}) }, START,
  ),
  cancel: (run) => ask("POST", `${BASE}/runs/${part(run)}/cancel`),
  hold: (item, reason) => ask("POST", `${BASE}/hold`, { ...documentOf(item), reason }),
  release: (item) => ask("POST", `${BASE}/release`, documentOf(item)),
};

const LINE = /^\[([+-])\](\S+) (.*)$/;

/** The health checks, which anybody may ask. */
export async function health() {
  const response = await request("healthz?verbose", { method: "GET" }, HEALTH_PATIENCE);
  const text = await response.text().catch(() => "");
  const lines = text.split("\n").map((line) => LINE.exec(line)).filter(Boolean);
  if (!lines.length) throw new Unreachable(`something in between answered ${response.status}`);
  const checks = lines.map(([, sign, name, rest]) => ({ name, ok: sign === "+", reason: rest.replace(/^failed: /, "") }));
  return { ok: response.ok, checks };
}
