// The page at work: signs in, asks the agent every few seconds, and does what the buttons say.

import { Problem, Unreachable, api, health, keepToken, token } from "./api.js";
import { drawAside } from "./aside.js";
import { $, h } from "./dom.js";
import { drawHistory, filtered } from "./history.js";
import { SPARKS, drawJobs } from "./jobs.js";
import { announce, closeNotice, confirm, give, tell } from "./notices.js";
import { refusalNote, tick } from "./parts.js";
import { closeSheet, drawSheet, itemOf, linked, moreItems, openSheet, refreshRun } from "./sheet.js";
import { busily, changed, jobOf, jobs, onChange, state } from "./state.js";
import { count, does, ended, planned, plural, refusal, shownId, sum } from "./words.js";

const EVERY = 5000; // milliseconds between two looks
const LONGEST = 60000; // between two tries while the agent cannot be reached
const PAGE = 25; // runs that are loaded at a time
const NEWEST = 8; // runs that every look asks for

onChange(() => {
  drawAside();
  if (!state.signedIn) return;
  drawJobs();
  drawHistory();
  drawSheet();
});

// ------------------------------------------------------------------------------------------------------------- looking

let timer = null;
let failures = 0;
let looking = null;

/** Looks now, and again later; while the page is hidden not at all. Who asks during a look gets one of his own after it. */
async function look() {
  if (document.hidden) return;
  if (looking) await looking;
  looking ??= lookOnce().finally(() => { looking = null; });
  await looking;
}

async function lookOnce() {
  clearTimeout(timer);
  let lost = null;
  try {
    await lookAtHealth(); // first, since it answers soon or not at all
    if (state.signedIn) await lookAtRuns();
  } catch (error) {
    if (error instanceof Unreachable) lost = error;
    else report(error);
  } finally {
    noteReach(lost);
    const pause = lost ? Math.min(EVERY * 2 ** failures, LONGEST) : EVERY;
    if (lost) state.reach.retryAt = new Date(Date.now() + state.offset + pause);
    timer = setTimeout(look, pause);
    changed();
  }
}

function noteReach(lost) {
  if (!lost) {
    if (!state.reach.ok) announce("The agent answers again.");
    failures = 0;
    state.reach = { ok: true, since: null, why: "", retryAt: null };
    return;
  }
  if (state.reach.ok) announce("The agent cannot be reached.");
  failures = state.reach.ok ? 0 : failures + 1;
  state.reach = { ok: false, since: state.reach.since ?? new Date(), why: lost.message, retryAt: null };
}

async function lookAtHealth() {
  state.health = await health();
  changed();
}

async function lookAtRuns() {
  try {
    const before = Date.now();
    const status = await api.status();
    if (!state.signedIn) return;
    takeStatus(status, before);
    await lookAtRecent();
    if (state.away) announce("The agent can answer again.");
    state.away = null;
    changed();
  } catch (error) {
    if (!state.signedIn) return; // signed out meanwhile: no answer counts any more
    if (!(error instanceof Problem) || error.status !== 503) throw error;
    if (!state.away) announce(error.message);
    state.away = { since: state.away?.since ?? new Date(), detail: error.message, dependency: error.document.dependency };
  }
}

function takeStatus(status, before) {
  const after = Date.now();
  state.status = status;
  state.statusAt = new Date(after);
  // The answer was made about half-way between question and answer.
  if (status.now) state.offset = Date.parse(status.now) - (before + after) / 2;
}

const asked = () => ({ ...state.history.filter });
const stillAsked = (filter) => Object.entries(filter).every(([name, value]) => state.history.filter[name] === value);

/** The newest runs: for the cards, for the sparklines, and at the head of the list. */
async function lookAtRecent() {
  const newest = (await api.runs({ limit: NEWEST })).runs;
  state.recent = newest;
  const list = state.history;
  if (list.runs === null) {
    await loadHistory();
  } else {
    const filter = asked();
    const matching = filtered() ? (await api.runs({ ...filter, limit: NEWEST })).runs : newest;
    if (stillAsked(filter)) await joinNewest(list, matching);
  }
  for (const job of jobs()) await rememberPast(job);
}

/** Puts the newest runs at the head of the list, and looks again at those in it that had not ended. */
async function joinNewest(list, newest) {
  const known = new Set(list.runs.map((run) => run._id));
  const filter = asked();
  if (newest.length === NEWEST && !newest.some((run) => known.has(run._id))) {
    await loadHistory(); // too much has happened
    return;
  }
  const fresh = new Map(newest.map((run) => [run._id, run]));
  for (const run of list.runs) {
    if (!ended(run) && !fresh.has(run._id)) fresh.set(run._id, await api.run(run._id).catch(() => run));
  }
  if (!stillAsked(filter) || list.runs === null) return;
  const there = new Set(list.runs.map((run) => run._id)); // it may have grown meanwhile
  list.runs = [...newest.filter((run) => !there.has(run._id)), ...list.runs.map((run) => fresh.get(run._id) ?? run)];
}

/** Keeps the last runs of a job: asked for once, then each new one is added. */
async function rememberPast(job) {
  const last = job.last_run;
  const past = state.past.get(job.name);
  if (!last || past?.at(-1)?._id === last._id) return;
  if (past?.length && state.recent.some((run) => run._id === past.at(-1)._id)) {
    const known = new Set(past.map((run) => run._id));
    const missed = state.recent.filter((run) => run.job === job.name && ended(run) && !known.has(run._id)).reverse();
    state.past.set(job.name, [...past, ...missed].slice(-SPARKS));
    return;
  }
  const { runs } = await api.runs({ job: job.name, limit: SPARKS });
  state.past.set(job.name, runs.filter(ended).reverse());
}

async function loadHistory({ more = false } = {}) {
  const list = state.history;
  const filter = asked();
  list.loading = true;
  changed();
  try {
    const page = await api.runs({ ...filter, limit: PAGE, before: more ? list.next : null });
    // The filter may have changed meanwhile: then this is the answer to an old question.
    if (!stillAsked(filter)) return;
    list.runs = more ? [...list.runs, ...page.runs] : page.runs;
    list.next = page.next;
  } finally {
    list.loading = false;
    changed();
  }
}

// ------------------------------------------------------------------------------------------------------------- signing

function signIn() {
  state.signedIn = true;
  $("sign-in").hidden = true;
  $("signed-in").hidden = false;
  $("sign-out").hidden = false;
  changed();
}

function signOut(why = "") {
  keepToken(null);
  if ($("sheet").open) closeSheet();
  Object.assign(state, { signedIn: false, status: null, statusAt: null, away: null, recent: [], sheet: null });
  state.past.clear();
  Object.assign(state.history, { runs: null, next: null });
  $("sign-in").hidden = false;
  $("signed-in").hidden = true;
  $("sign-out").hidden = true;
  const problem = $("token-problem");
  if (problem) {
    problem.textContent = why;
    $("token").focus();
  }
  changed();
}

$("token-form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = $("token");
  const given = input.value.trim();
  const say = (text) => {
    $("token-problem").textContent = text;
    input.setAttribute("aria-invalid", String(Boolean(text)));
    if (text) input.focus();
  };
  if (!given) return say("Enter a token.");
  say("");
  try {
    const before = Date.now();
    takeStatus(await api.status({ as: given }), before);
  } catch (error) {
    // Where something is away, the token was looked at before that was found out.
    if (!(error instanceof Problem && error.status === 503)) return say(refused(error));
  }
  keepToken(given);
  input.value = "";
  signIn();
  announce("Signed in.");
  $("main").focus();
  await look();
  await openLinked();
  return undefined;
});

function refused(error) {
  if (error instanceof Unreachable) return `The agent cannot be reached: ${error.message}.`;
  if (error.status === 401) return "The agent does not know this token. See that it is the part behind the colon, and whole.";
  return error.message;
}

/** Says what went wrong. A token that is not known any more asks for another one. */
function report(error) {
  if (error instanceof Problem && error.status === 401) signOut("The agent does not know this token any more: enter another one.");
  else if (error instanceof Problem && error.status === 403) signOut(error.message);
  else if (error instanceof Problem) tell(error.message, { bad: true });
  else if (error instanceof Unreachable) tell(`The agent cannot be reached: ${error.message}. Whether it did what was asked is not known.`, { bad: true });
  else throw error;
}

let link = linked(); // the run that the address named when the page was opened

async function openLinked() {
  const run = link;
  link = null;
  if (run && !state.sheet) await actions.open({ run });
}

// ------------------------------------------------------------------------------------------------------------- actions

const runsOf = (answer) => answer.runs ?? [answer];
const find = (id) => state.sheet?.runs.find((run) => run._id === id)
  ?? state.history.runs?.find((run) => run._id === id)
  ?? jobs().map((job) => job.last_run).find((run) => run?._id === id);

const actions = {
  signOut: () => signOut(),
  tryNow: () => look(),
  closeSheet: () => closeSheet(),
  closeNotice: ({ id }) => closeNotice(id),
  answer: ({ answer }) => give(answer === "yes"),

  preview: ({ job = "" }) => busily(`preview:${job}`, async () => {
    const answer = await api.preview(job);
    openSheet({
      title: job ? `Preview of ${job}` : "Preview of all jobs",
      runs: runsOf(answer),
      plan: job ? answer._id : answer.pass,
      pass: !job,
      onEnd: look,
    });
  }),

  run: async ({ job = "" }) => {
    if (!await confirm(job ? questionOfOne(jobOf(job)) : questionOfAll())) return;
    await start(job, []);
  },

  consent: async ({ run: id }) => {
    const run = find(id);
    const job = jobOf(run.job);
    const said = refusal(run, job);
    const yes = await confirm({
      title: `Run ${run.job} although a guard said no?`,
      body: [refusalNote(run, job, { consent: false, level: "h3" }), h("p", null, `With your consent ${run.job} ${does(job ?? run)}, now. Your name and what you consented to stand in the record of the run.`)],
      label: `Consent to “${said.accept}” and run`,
      danger: true,
      acknowledge: "I have looked at this, and it is right.",
    });
    if (yes) await start(run.job, [said.accept]);
  },

  apply: async ({ plan }) => {
    const { sheet } = state;
    if (sheet.pass && !await confirm(questionOfPlans(sheet))) return;
    await busily("apply", async () => {
      const answer = await api.apply(plan);
      sheet.applied = true;
      if (state.sheet === sheet) openSheet({ title: "The plan, applied", runs: answer.runs, onEnd: applied });
    });
  },

  open: async ({ run: id }) => {
    const run = await busily(`open:${id}`, () => api.run(id));
    if (!run) return;
    openSheet({ title: `${run.dry_run ? "Preview" : "Run"} of ${run.job}`, runs: [run], plan: run.dry_run ? run._id : null, onEnd: look });
  },

  cancel: ({ run }) => busily(`cancel:${run}`, async () => {
    await api.cancel(run);
    tell("It ends after the batch that is in hand.");
  }),

  restore: async ({ run: id }) => {
    const run = find(id);
    const documents = sum(run.changed) - (run.changed.restored ?? 0);
    const yes = await confirm({
      title: `Restore what ${run.job} changed?`,
      body: [
        h("p", null, `This puts back the ${plural(documents, "document")} that the run changed, as they were, and holds them: no run takes them again for a week, or until they are released.`),
        h("p", null, "Documents that somebody changed since are left as they are, and reported as conflicts."),
      ],
      label: `Restore ${count(documents)}`,
    });
    if (yes) await restore(id, null, `restore:${id}`);
  },

  restoreItem: async ({ run, item: entry }) => {
    const item = itemOf(run, entry);
    const yes = await confirm({
      title: "Restore this document?",
      body: [
        h("p", null, h("code", { class: "document" }, h("bdi", null, shownId(item.id)))),
        h("p", null, "It is put back as it was, and held: no run takes it again for a week, or until it is released. If somebody changed it since, it is left as it is and reported as a conflict."),
      ],
      label: "Restore it",
    });
    if (yes) await restore(run, item, `item:${entry}`);
  },

  hold: ({ run, item: entry }) => busily(`item:${entry}`, async () => {
    const item = itemOf(run, entry);
    await api.hold(item, "held on the status page");
    item.held = "hold";
    adjustHeld(run, 1);
    tell(`${shownId(item.id)} is held: no job touches it until it is released.`);
  }),

  release: ({ run, item: entry }) => busily(`item:${entry}`, async () => {
    const item = itemOf(run, entry);
    await api.release(item);
    item.held = null;
    adjustHeld(run, -1);
    tell(`${shownId(item.id)} is released: jobs may touch it again.`);
  }),

  pause: ({ job = "" }) => steer(job, "pause"),
  resume: ({ job = "" }) => steer(job, "resume"),

  moreRuns: () => loadHistory({ more: true }),
  moreItems: ({ run }) => moreItems(run),

  filterPass: async ({ pass }) => {
    if ($("sheet").open) closeSheet();
    Object.assign(state.history.filter, { job: "", outcome: "", trigger: "", pass });
    $("filters").reset();
    await loadHistory();
    $("history-title").scrollIntoView({ block: "start" });
  },
};

/** In a plan that is shown, the number of items that an apply takes follows the holds. */
function adjustHeld(id, by) {
  const run = find(id);
  if (run?.dry_run) run.held = { ...run.held, hold: Math.max(0, (run.held?.hold ?? 0) + by) };
}

function questionOfOne(job) {
  return {
    title: `Run ${job.name} now?`,
    body: [
      h("p", null, job.dry_run ? `${job.name} is configured to look only (dry_run): it changes nothing.` : `It ${does(job)}.`),
      job.dry_run ? null : h("p", null, "Guards, quarantine and holds count as in any run, and what it changes can be restored. Preview shows first what it would do."),
    ],
    label: "Run it",
  };
}

function questionOfAll() {
  const enabled = jobs().filter((job) => job.enabled);
  return {
    title: "Run all enabled jobs now?",
    body: [
      h("p", null, "One after the other, in this order:"),
      h("ol", null, enabled.map((job) => h("li", null, h("strong", null, job.name), ` ${job.dry_run ? "only looks" : does(job)}`))),
      h("p", null, "Guards, quarantine and holds count as in any run, and what they change can be restored."),
    ],
    label: "Run them",
  };
}

function questionOfPlans(sheet) {
  const listed = sheet.runs.filter(planned);
  return {
    title: "Apply the plans of all jobs?",
    body: [
      h("ul", null, listed.map((run) => h("li", null, h("strong", null, run.job), `: ${count(planned(run))}${run.would_refuse ? ", more than its cap allows a run" : ""}`))),
      h("p", null, "Each item is looked at again; what no longer holds, or is held, is left alone. What is changed can be restored."),
    ],
    label: `Apply ${count(listed.reduce((total, run) => total + planned(run), 0))}`,
  };
}

function start(job, accept) {
  return busily(`run:${job}`, async () => {
    const answer = await api.start(job, accept);
    openSheet({ title: job ? `Run of ${job}` : "Run of all jobs", runs: runsOf(answer), pass: !job, onEnd: look });
  });
}

function applied() {
  const runs = state.sheet?.runs ?? [];
  const done = runs.reduce((total, run) => total + sum(run.changed), 0);
  tell(`${plural(done, "document")} changed. What was changed can be restored.`);
  look();
}

function restore(run, item, name) {
  return busily(name, async () => {
    let record = await api.restore(run, item);
    while (!ended(record)) {
      await new Promise((resolve) => { setTimeout(resolve, 1000); });
      record = await api.run(record._id);
    }
    const back = record.changed.restored ?? 0;
    const conflicts = record.failed ? `, ${plural(record.failed, "conflict")}: changed since, and left as they are` : "";
    const text = record.outcome === "succeeded" ? `${count(back)} restored and held${conflicts}.` : `The restore ${record.outcome.replace("_", " ")}: ${record.reason}`;
    tell(text, { bad: record.outcome !== "succeeded" || Boolean(record.failed) });
    await refreshRun(run, { whole: !item && record.outcome === "succeeded" && !record.failed });
    look();
  });
}

function steer(job, verb) {
  return busily(`pause:${job}`, async () => {
    await api[verb](job);
    const whose = job || "Everything";
    tell(verb === "pause" ? `${whose} is paused: the clock stands, runs by hand still work.` : `${whose} is resumed.`);
    await look();
  });
}

// -------------------------------------------------------------------------------------------------------------- events

document.addEventListener("click", async (event) => {
  const target = event.target.closest("[data-do]");
  // Who marks text in a row wants to copy it.
  if (target?.nodeName === "TR" && !getSelection().isCollapsed) return;
  if (!target || target.getAttribute("aria-disabled") === "true") return;
  try {
    await actions[target.dataset.do]?.(target.dataset);
  } catch (error) {
    report(error);
  }
});

$("filters").addEventListener("change", async (event) => {
  state.history.filter[event.target.name] = event.target.value;
  try {
    await loadHistory();
    announce(`${plural(state.history.runs.length, "run")} shown.`);
  } catch (error) {
    report(error);
  }
});
$("filters").addEventListener("submit", (event) => event.preventDefault());

$("theme").value = document.documentElement.dataset.theme ?? "";
$("theme").addEventListener("change", (event) => {
  const { value } = event.target;
  if (value) document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem("maintenance-agent.theme", value);
  } catch {
    // Storage is switched off: the choice lasts as long as the page.
  }
});

document.addEventListener("visibilitychange", () => look());
setInterval(() => { if (!document.hidden) tick(); }, 1000);

if (token() !== null) signIn();
else $("token")?.focus();
await look();
if (state.signedIn) await openLinked().catch(report);
