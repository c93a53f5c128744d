// How the page says things: numbers, times, outcomes, guards, and what a job does.

const numbers = new Intl.NumberFormat();
const few = new Intl.NumberFormat(undefined, { maximumFractionDigits: 2 });

export const OUTCOMES = ["succeeded", "failed", "timed_out", "refused", "interrupted"];
export const TRIGGERS = ["schedule", "startup", "manual", "plan", "restore", "cli"];

// Findings that are reported, never changed.
const REPORTED = ["malformed", "unreadable", "outside", "overcommitted"];

// ------------------------------------------------------------------------------------------------------------ numbers

export const count = (number) => numbers.format(number ?? 0);
export const sum = (map) => Object.values(map ?? {}).reduce((total, one) => total + one, 0);
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A map of counts in words: `28 orphan, 3 malformed`. */
export function counted(map) {
  return Object.entries(map ?? {}).map(([name, number]) => `${count(number)} ${name}`).join(", ");
}

/** How long something took. */
export function lasted(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${few.format(Math.round(seconds * 10) / 10)} s`;
  return span(seconds);
}

/** A span of time in its two largest units. */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return hours ? `${days} d ${hours} h` : `${days} d`;
  if (hours) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  if (minutes) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return `${whole} s`;
}

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** An amount of a provider's resource: thousandths of cores, shown as cores, or bytes. */
export function amount(resource, value) {
  if (value === null || value === undefined) return "unknown";
  if (resource === "cpu") return few.format(value / 1000);
  let [size, unit] = [value, 0];
  while (Math.abs(size) >= 1024 && unit < BINARY.length - 1) [size, unit] = [size / 1024, unit + 1];
  return `${few.format(size)} ${BINARY[unit]}`;
}

// --------------------------------------------------------------------------------------------------------------- time

const clockTime = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayAndTime = new Intl.DateTimeFormat(undefined, {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit",
});
const withYear = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** An instant in local time: only the time where it is today's. */
export function local(date) {
  const now = new Date();
  if (date.toDateString() === now.toDateString()) return clockTime.format(date);
  return (date.getFullYear() === now.getFullYear() ? dayAndTime : withYear).format(date);
}

export const utc = (date) => date.toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");

/** `3 min ago`, coarse: it is read, not measured. */
export function ago(date, now) {
  const seconds = Math.max(0, (now - date) / 1000);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return `${span(seconds)} ago`;
}

/** A countdown: `in 12 min 4 s`. */
export function until(date, now) {
  const seconds = (date - now) / 1000;
  return seconds < 1 ? "due now" : `in ${span(seconds)}`;
}

// --------------------------------------------------------------------------------------------------------------- runs

const LOOKS = {
  succeeded: "good", failed: "bad", timed_out: "bad", refused: "warn", interrupted: "warn", skipped: "plain",
};

/** How a run ended, or that it has not: the word, and its look. */
export function outcome(run) {
  if (run.outcome) return { word: run.outcome.replace("_", " "), look: LOOKS[run.outcome] ?? "plain" };
  return run.started_at ? { word: "running", look: "busy" } : { word: "waiting", look: "plain" };
}

export const ended = (run) => Boolean(run.outcome);
export const changedBy = (run) => Object.fromEntries(Object.entries(run.changed ?? {}).filter(([action]) => action !== "restored"));

/** Whether a run changed something that may be put back. */
export const restorable = (run) => ended(run) && !run.dry_run && run.trigger !== "restore" && sum(changedBy(run)) > 0;

/** How many items the apply of a plan would look at: what is held by hand stays, quarantine and cap do not count. */
export function planned(run) {
  if (!run.dry_run || run.outcome !== "succeeded") return 0;
  if (run.sample?.length && !run.sample.some((item) => item.action)) return 0;
  const actionable = Object.entries(run.found ?? {}).filter(([what]) => !REPORTED.includes(what));
  return Math.max(0, sum(Object.fromEntries(actionable)) - (run.held?.hold ?? 0));
}

const TRIGGER_WORDS = {
  schedule: "schedule", startup: "start-up", manual: "by hand", plan: "plan applied", restore: "restore", cli: "command line",
};
export const triggered = (run) => TRIGGER_WORDS[run.trigger] ?? run.trigger;
export const triggerWord = (trigger) => TRIGGER_WORDS[trigger] ?? trigger;

// ------------------------------------------------------------------------------------------------------------- guards

const COMMAND = /; if that is right, consent with:.*$/s; // the page has a button for it
const GUARDS = {
  root: {
    title: "the volume is not proven",
    why: "The agent was not sure that it looked at the right volume, and then a missing directory proves nothing. Nothing was changed.",
    help: (job) => [
      `See that the volume is mounted where the agent looks for it${at(job, "root")}, and that it is the right one.`,
      "Once it is, preview again. The next scheduled run then goes through by itself.",
    ],
    consent: "If the directories are gone on purpose, you can consent to this once, by name and on record.",
  },
  targets: {
    title: "the targets are not proven",
    why: "The collection that tasks are compared with is not what it was, and then a missing target proves nothing. Nothing was changed.",
    help: (job) => [
      `See that the configured database and the collection of the targets${at(job, "targets")} are the right ones and are filled.`,
      "Once they are, preview again. The next scheduled run then goes through by itself.",
    ],
    consent: "If the targets are gone on purpose, you can consent to this once, by name and on record.",
  },
  cap: {
    title: "more than one run may change",
    why: "So many items at once are rarely what a rule is meant for. The whole run was refused; nothing was changed.",
    help: (job, wouldRefuse) => [
      wouldRefuse
        ? "Look at the items: apply carries out exactly this plan, whatever the cap says."
        : "Preview, and look at the items. Apply then carries out exactly that plan, whatever the cap says.",
      "If such numbers are normal here, raise `limit` in the job's configuration.",
    ],
    consent: "If it is right, you can also consent to this run, by name and on record.",
  },
  archive: {
    title: "the archive is full",
    why: "Nothing is changed without a copy that makes it undoable, and there is no room for more copies.",
    help: () => ["Raise `archive.max_size`, or wait until older copies expire (`archive.keep`)."],
    consent: "",
  },
};

function at(job, key) {
  const value = job?.settings?.[key];
  return typeof value === "string" ? ` (${value})` : "";
}

/** What a guard saw in a run, and what an operator can do; nothing where none refused, or would. */
export function refusal(run, job) {
  if (run.outcome !== "refused" && !run.would_refuse) return null;
  const guard = run.would_refuse ?? run.guard ?? null;
  const reason = run.reason ?? "";
  const saw = (reason.startsWith(`${guard}: `) ? reason.slice(guard.length + 2) : reason).replace(COMMAND, "");
  const words = GUARDS[guard] ?? { title: "a guard said no", why: "Nothing was changed.", help: () => [], consent: "" };
  return {
    guard,
    saw,
    title: words.title,
    why: run.would_refuse ? "This is a preview: nothing was changed." : words.why,
    help: words.help(job, Boolean(run.would_refuse)),
    // The record says whether consent helps: an unreadable root, for one, is refused whatever anybody says.
    accept: run.consent ?? null,
    consent: run.consent ? words.consent : "",
    wouldRefuse: Boolean(run.would_refuse),
  };
}

// --------------------------------------------------------------------------------------------------------------- jobs

const DOES = {
  orphan_records: (s) => `deletes records of ${s.collection} whose directory is missing under ${s.root}`,
  orphan_tasks: (s) => `cancels active tasks of ${s.collection} whose target is no longer in ${s.targets}`,
  stuck_tasks: (s) => `fails running tasks of ${s.collection} after ${s.timeout}, and cancels pending ones after ${s.pending_timeout}`,
  retention: (s) => `deletes finished tasks of ${s.collection} that are older than ${keep(s.keep)}`,
  allocation_audit: (s) => s.repair
    ? "compares booked, owed and used amounts of the providers, and sets booked to what is owed"
    : "compares booked, owed and used amounts of the providers; it changes nothing",
  client_eviction: (s) => `closes clients of providers that were idle for ${s.ttl}, or are no longer right`,
};

const keep = (value) => (typeof value === "object" && value !== null
  ? Object.entries(value).map(([status, age]) => `${age} (${status})`).join(", ")
  : value);

/** What a job does, in half a sentence. */
export function does(job) {
  const words = DOES[job.kind];
  const text = words && job.settings ? words(job.settings) : "";
  return text && !text.includes("undefined") ? text : `runs the rule ${job.kind}`;
}

/** When a job runs, in words. */
export function schedule(job) {
  const { every, cron, timezone } = job.schedule ?? {};
  if (cron) return `cron ${cron}${timezone && timezone !== "UTC" ? ` (${timezone})` : ""}`;
  return every ? `every ${every}` : "no schedule";
}

// ---------------------------------------------------------------------------------------------------------- documents

// Controls, and marks that are not seen but turn or join what is around them.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** A text of somebody's with everything in it to be seen, so that it looks like nothing that it is not. */
export function visible(text) {
  return text.replace(UNSEEN, (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** An `_id` as a person writes it: an ObjectId's digits, a text as it is, anything else as Extended JSON. */
export function shownId(id) {
  if (typeof id === "string") return visible(id);
  if (id && typeof id === "object" && typeof id.$oid === "string") return id.$oid;
  return visible(JSON.stringify(id));
}
