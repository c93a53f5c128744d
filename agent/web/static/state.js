// What the page knows. Everything that is shown is drawn from here, again and again.

export const state = {
  signedIn: false,
  /** Whether the agent answers: since when not, why, and when it is asked again. */
  reach: { ok: true, since: null, why: "", retryAt: null },
  /** The last health answer, `{ok, checks}`. */
  health: null,
  /** The last status, when it came, and by how much this machine's clock is behind the agent's (milliseconds). */
  status: null,
  statusAt: null,
  offset: 0,
  /** Since when the API cannot say anything because something that it needs is away, and what. */
  away: null,
  /** The newest runs of all jobs, for the cards. */
  recent: [],
  /** The list of runs below: what it is narrowed to, its entries, and where it goes on. */
  history: { filter: { job: "", outcome: "", trigger: "", pass: "" }, runs: null, next: null, loading: false },
  /** The last runs of each job, the oldest first, for its sparkline. */
  past: new Map(),
  /** What was asked for and is not answered yet, so that it is not asked twice. */
  busy: new Set(),
  /** The dialog of runs: see sheet.js. */
  sheet: null,
};

export const now = () => Date.now() + state.offset;
export const jobs = () => state.status?.jobs ?? [];
export const jobOf = (name) => jobs().find((job) => job.name === name);

let draw = () => {};

/** Whoever draws the page says so once. */
export function onChange(callback) {
  draw = callback;
}

/** Draws what changed. */
export function changed() {
  draw();
}

/** Does something under a name, once at a time; the page is drawn before and after. */
export async function busily(name, work) {
  if (state.busy.has(name)) return undefined;
  state.busy.add(name);
  changed();
  try {
    return await work();
  } finally {
    state.busy.delete(name);
    changed();
  }
}
