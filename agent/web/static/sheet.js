// The dialog of runs: a preview with its plan, runs under way, and what became of them, each with its items.

import { api } from "./api.js";
import { $, button, chip, h, update } from "./dom.js";
import { announce, tell } from "./notices.js";
import { figure, outcomeChip, refusalNote, time } from "./parts.js";
import { changed, jobOf, state } from "./state.js";
import { count, counted, ended, lasted, outcome, planned, plural, restorable, shownId, sum, triggered, visible } from "./words.js";

const PAGE = 50; // items that are loaded at a time
const FOLLOW_SECONDS = 1; // between two looks at a run that is under way
const PLAN_HOURS = 24; // as long as the agent keeps a plan

/**
 * Opens the dialog on runs. `plan` is the id that carries their plans out, `pass` whether they are a pass; `onEnd` is
 * called when all have ended.
 */
export function openSheet({ title, runs, plan = null, pass = false, onEnd = null }) {
  state.sheet = { title, runs, plan, pass, items: new Map(), applied: false, restored: new Set() };
  $("sheet-notice").textContent = "";
  $("sheet-title").textContent = title;
  drawSheet();
  if (!$("sheet").open) $("sheet").showModal();
  $("sheet-body").scrollTop = 0;
  if (runs.length === 1) link(runs[0]._id);
  follow(state.sheet, onEnd).catch(complain);
}

$("sheet").addEventListener("close", () => {
  state.sheet = null;
  link(null);
  changed();
});

export const closeSheet = () => $("sheet").close();

/** The address names the run, so that it can be passed on. */
function link(run) {
  history.replaceState(null, "", run ? `#run/${encodeURIComponent(run)}` : location.pathname + location.search);
}

export function linked() {
  const found = /^#run\/(.+)$/.exec(location.hash);
  return found ? decodeURIComponent(found[1]) : null;
}

// ----------------------------------------------------------------------------------------------------- runs and items

/** Looks at the runs until they have ended, and loads the items of those that have. */
async function follow(sheet, onEnd) {
  const asked = new Set();
  for (;;) {
    for (const run of sheet.runs.filter((one) => ended(one) && !asked.has(one._id))) {
      asked.add(run._id);
      loadItems(sheet, run._id);
    }
    if (sheet.runs.every(ended)) break;
    await new Promise((resolve) => { setTimeout(resolve, FOLLOW_SECONDS * 1000); });
    if (state.sheet !== sheet) return;
    await lookAgain(sheet);
    changed();
  }
  announce(sheet.runs.map((run) => `${run.job}: ${summary(run)}`).join("; "));
  onEnd?.();
}

async function lookAgain(sheet) {
  for (const [index, run] of sheet.runs.entries()) {
    if (ended(run)) continue;
    try {
      sheet.runs[index] = await api.run(run._id);
    } catch (error) {
      if (error.status === 404) sheet.runs[index] = { ...run, outcome: "interrupted", reason: "The agent that ran it is gone, and left no record." };
      else if (error.status !== 503 && error.status !== undefined) throw error;
      return; // not now: the next look may tell
    }
  }
}

/** Looks again at a run and its items; `whole`: all of it was restored. */
export async function refreshRun(id, { whole = false } = {}) {
  const { sheet } = state;
  if (whole) sheet?.restored.add(id);
  const index = sheet?.runs.findIndex((run) => run._id === id) ?? -1;
  if (index < 0) return;
  sheet.runs[index] = await api.run(id);
  sheet.items.delete(id);
  await loadItems(sheet, id);
}

async function loadItems(sheet, id) {
  const known = sheet.items.get(id) ?? { list: [], next: null };
  const run = sheet.runs.find((one) => one._id === id);
  if (!run.started_at || run.outcome === "skipped") return;
  sheet.items.set(id, { ...known, loading: true });
  changed();
  try {
    const page = await api.items(id, known.next, PAGE);
    sheet.items.set(id, { list: [...known.list, ...page.items], next: page.next, loading: false });
  } catch (error) {
    sheet.items.set(id, { ...known, loading: false, problem: error.message });
  }
  changed();
}

export const moreItems = (id) => loadItems(state.sheet, id);

/** An item by the id of its entry. */
export function itemOf(run, entry) {
  return state.sheet?.items.get(run)?.list.find((item) => item._id === entry);
}

// ---------------------------------------------------------------------------------------------------------------- draw

export function drawSheet() {
  const { sheet } = state;
  if (!sheet) return;
  const focused = document.activeElement;
  update($("sheet-body"), sheet.runs.length ? sheet.runs.map((run) => section(run, sheet)) : h("p", { class: "empty" }, "No job is enabled: there was nothing to run."));
  update($("sheet-actions"), footer(sheet));
  // What had the focus may be gone; a dialog without it would leave a keyboard nowhere.
  if (focused && !focused.isConnected && !$("confirm").open) $("sheet-title").focus();
}

function footer(sheet) {
  const going = sheet.runs.some((run) => !ended(run));
  const total = sheet.runs.reduce((number, run) => number + planned(run), 0);
  const single = sheet.runs.length === 1 ? sheet.runs[0] : null;
  return [
    sheet.plan && !going && total && !spent(sheet)
      ? button(sheet.pass ? `Apply these ${count(total)} …` : `Apply these ${count(total)}`, "apply", { plan: sheet.plan }, { kind: "primary", busy: state.busy.has("apply") })
      : null,
    single && restorable(single) && !restored(single, sheet)
      ? button("Restore …", "restore", { run: single._id }, { busy: state.busy.has(`restore:${single._id}`) })
      : null,
    button("Close", "closeSheet"),
  ];
}

/** Whether the plan was applied already, or is too old. */
function spent(sheet) {
  if (sheet.applied) return true;
  const states = sheet.runs.flatMap((run) => sheet.items.get(run._id)?.list ?? []).map((item) => item.state);
  const oldest = Math.min(...sheet.runs.map((run) => Date.parse(run.started_at) || Infinity));
  return states.some((one) => one === "done" || one === "stale") || Date.now() - oldest > PLAN_HOURS * 3600 * 1000;
}

/** Whether nothing of a run is left to restore, as far as its items tell. */
function restored(run, sheet) {
  const known = sheet.items.get(run._id);
  return Boolean(known?.list.length && !known.next && known.list.every((item) => item.state === "restored")) || sheet.restored.has(run._id);
}

function summary(run) {
  if (!ended(run)) return outcome(run).word;
  const parts = [
    run.dry_run || !sum(run.changed) ? `${count(sum(run.found))} found` : counted(run.changed),
    sum(run.held) ? `${count(sum(run.held))} held` : null,
    run.failed ? `${count(run.failed)} failed` : null,
  ];
  return `${outcome(run).word}, ${parts.filter(Boolean).join(", ")}`;
}

function section(run, sheet) {
  const several = sheet.runs.length > 1;
  const id = `run-${run._id}`;
  const quiet = several && ended(run) && run.outcome === "succeeded" && !sum(run.found) && !sum(run.changed);
  return h(
    "section",
    { class: quiet ? "run quiet-run" : "run", "data-key": run._id, "aria-labelledby": id },
    h(
      "header",
      null,
      h("h3", { id }, run.job),
      h("span", { class: "badges" }, outcomeChip(run), run.dry_run ? chip("preview", "info") : null, run.trigger === "restore" ? chip("restore", "info") : null, run.complete || !ended(run) ? null : chip("not complete", "plain", "There was more to do than this run did")),
      quiet ? h("span", { class: "faint" }, "found nothing") : null,
      several && restorable(run) && !restored(run, sheet) ? button("Restore …", "restore", { run: run._id }, { busy: state.busy.has(`restore:${run._id}`), name: `Restore what ${run.job} changed` }) : null,
      ended(run) || !run.started_at ? null : button("Cancel", "cancel", { run: run._id }, { busy: state.busy.has(`cancel:${run._id}`), name: `Cancel the run of ${run.job}` }),
    ),
    quiet ? null : [facts(run, sheet, several), refusalNote(run, jobOf(run.job)), heldNote(run), plainReason(run), items(run, sheet)],
  );
}

/** What the holds of a plan mean for whoever applies it. */
function heldNote(run) {
  if (!run.dry_run || !sum(run.held)) return null;
  const { quarantine = 0, hold = 0 } = run.held;
  return h(
    "div",
    { class: "callout info" },
    quarantine ? h("p", null, `${plural(quarantine, "item is", "items are")} in quarantine: seen too recently for a scheduled run, which waits. Apply does not wait.`) : null,
    hold ? h("p", null, `${plural(hold, "item is", "items are")} held: no job touches them, and apply does not either, until they are released.`) : null,
  );
}

function plainReason(run) {
  if (!run.reason || run.outcome === "refused" || run.would_refuse) return null;
  const look = run.outcome === "succeeded" || run.outcome === "skipped" ? "info" : "bad";
  return h("p", { class: `callout ${look}` }, h("bdi", null, visible(run.reason)));
}

function facts(run, sheet, several) {
  const fact = (label, ...content) => h("div", { class: "fact" }, h("dt", null, label), h("dd", null, content));
  return [
    h("dl", { class: "figures" }, figure("Looked at", { [run.trigger === "restore" ? "copies" : "documents"]: run.population }), figure("Found", run.found), figure("Held", run.held), run.dry_run ? figure("Would change", { [planned(run) === 1 ? "document" : "documents"]: planned(run) }) : figure("Changed", run.changed), run.failed ? figure(run.trigger === "restore" ? "Conflicts" : "Failed", { "left as they are": run.failed }) : null),
    sheet.plan && several
      ? null
      : h(
        "dl",
        { class: "facts" },
        fact("Started", time(run.started_at)),
        fact("Took", lasted(run.seconds)),
        fact("Trigger", h("bdi", null, `${triggered(run)}${run.requested_by ? ` · ${run.requested_by}` : ""}`)),
        run.accept?.length ? fact("Consented to", run.accept.join(", ")) : null,
        run.source ? fact(run.trigger === "restore" ? "Restores" : "Applies", button(run.source, "open", { run: run.source }, { kind: "link" })) : null,
        fact("Replica", h("bdi", null, run.agent || "–")),
        fact("Run", h("code", null, run._id)),
        run.pass ? fact("Pass", button(run.pass, "filterPass", { pass: run.pass }, { kind: "link", name: `Show all runs of the pass ${run.pass}` })) : null,
      ),
  ];
}

// --------------------------------------------------------------------------------------------------------------- items

function items(run, sheet) {
  if (!ended(run)) return null;
  const known = sheet.items.get(run._id);
  const reported = (run.sample ?? []).filter((item) => !item.action || run.trigger === "restore");
  const parts = [];
  if (known?.problem) parts.push(h("p", { class: "bad-text" }, known.problem));
  if (known?.list.length) parts.push(itemTable(run, known));
  else if (known?.loading) parts.push(h("p", { class: "faint" }, "Loading …"));
  if (reported.length) parts.push(reportedTable(run, reported));
  if (!parts.length && sum(run.found) && run.outcome === "succeeded") parts.push(h("p", { class: "faint" }, "The items are no longer kept, or the run changed none."));
  if (!parts.length && run.outcome === "succeeded" && !sum(run.found) && run.trigger !== "restore") parts.push(h("p", { class: "empty" }, run.population ? "Nothing was found: all is as it should be." : "There was nothing to look at."));
  return parts;
}

function itemTable(run, { list, next, loading }) {
  const total = run.dry_run ? sum(run.found) : null;
  return [
    h(
      "table",
      { class: run.dry_run ? "grid items plan" : "grid items", role: "table", "aria-label": run.dry_run ? `The plan of ${run.job}` : `What ${run.job} changed` },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["Document", "Action", "Reason", run.dry_run ? "Held by" : "State", "Actions"].map((title) => h("th", { scope: "col", role: "columnheader" }, title)))),
      h("tbody", { role: "rowgroup" }, list.map((item) => itemRow(run, item))),
    ),
    h(
      "p",
      { class: "more" },
      next ? button(`Load ${PAGE} more`, "moreItems", { run: run._id }, { busy: loading }) : null,
      h("span", { class: "faint" }, ` ${count(list.length)}${next && total ? ` of ${count(total)}` : ""} shown`),
    ),
  ];
}

function itemRow(run, item) {
  const cell = (label, ...content) => h("td", { role: "cell", "data-label": label }, content);
  return h(
    "tr",
    { role: "row", "data-key": item._id },
    cell("Document", document_(item.id, `${item.database}.${item.collection}`)),
    cell("Action", chip(run.dry_run ? `${planWord(item.action)}` : item.action ?? "–", "plain")),
    cell("Reason", h("bdi", null, visible(item.reason ?? ""))),
    cell(run.dry_run ? "Held by" : "State", stateOf(run, item)),
    h("td", { role: "cell", class: "actions", "data-label": "" }, itemButtons(run, item)),
  );
}

/** An `_id`, set apart from the text around it: it may hold anything. */
function document_(id, where) {
  return h("code", { class: "document", title: `${where}: ${JSON.stringify(id)}` }, h("bdi", null, shownId(id)));
}

const PLAN_WORDS = { deleted: "delete", cancelled: "cancel", failed: "fail", repaired: "repair", evicted: "evict" };
const planWord = (action) => PLAN_WORDS[action] ?? action ?? "report";

const STATES = { done: "plain", restored: "good", conflict: "warn", stale: "warn", pending: "busy", planned: "plain" };
const STATE_TITLES = {
  restored: "Put back as it was, and held so that no run takes it again",
  conflict: "Somebody changed it since: it was left as it is",
  stale: "It no longer held when the plan was applied: it was left alone",
  planned: "An apply of this plan changes it",
};
const HELD_TITLES = {
  quarantine: "Seen too recently: a later run acts on it. Apply does not wait for that.",
  hold: "No job may touch it, and apply does not either, until it is released",
};

function stateOf(run, item) {
  const held = item.held ? chip(item.held, item.held === "hold" ? "warn" : "info", HELD_TITLES[item.held]) : null;
  if (run.dry_run && item.state === "planned") return held ?? h("span", { class: "faint" }, "–");
  return [item.state ? chip(item.state, STATES[item.state] ?? "plain", STATE_TITLES[item.state]) : null, held ? [" ", held] : null];
}

function itemButtons(run, item) {
  const data = { run: run._id, item: item._id };
  const busy = state.busy.has(`item:${item._id}`);
  const name = shownId(item.id);
  const held = item.held === "hold" || (item.state === "restored" && item.held === undefined);
  const exists = run.dry_run || item.state === "restored" || item.action !== "deleted";
  return [
    !run.dry_run && (item.state === "done" || item.state === "conflict")
      ? button("Restore …", "restoreItem", data, { busy, name: `Restore ${name}` })
      : null,
    held ? button("Release", "release", data, { busy, name: `Release ${name}`, title: "Let jobs touch it again" }) : null,
    !held && exists ? button("Hold", "hold", data, { busy, name: `Hold ${name}`, title: "Keep every job off it until it is released" }) : null,
  ];
}

function reportedTable(run, list) {
  const restore = run.trigger === "restore";
  return [
    h("h4", null, restore ? "Put back, and left" : "Reported only"),
    h("p", { class: "faint" }, restore ? `The first ${plural(list.length, "document")} of this restore.` : `These were found and are never changed: the first ${plural(list.length, "of them", "of them")}.`),
    h(
      "table",
      { class: "grid items told", role: "table", "aria-label": restore ? "Restored documents" : "Reported documents" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["Document", "Result", "Reason"].map((title) => h("th", { scope: "col", role: "columnheader" }, title)))),
      h("tbody", { role: "rowgroup" }, list.map((item) => h(
        "tr",
        { role: "row" },
        h("td", { role: "cell", "data-label": "Document" }, document_(item.id, run.job)),
        h("td", { role: "cell", "data-label": "Result" }, restore ? chip(item.action ?? "conflict", item.action ? "good" : "warn") : chip("reported", "plain")),
        h("td", { role: "cell", "data-label": "Reason" }, h("bdi", null, visible(item.reason ?? ""))),
      ))),
    ),
  ];
}

/** Says so when something of the dialog went wrong. */
export function complain(error) {
  tell(error.message, { bad: true });
}
