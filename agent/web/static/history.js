// The list of runs, with its filters.

import { $, button, chip, h, update } from "./dom.js";
import { outcomeChip, time } from "./parts.js";
import { jobs, state } from "./state.js";
import { OUTCOMES, TRIGGERS, count, counted, lasted, sum, triggerWord, triggered } from "./words.js";

export function drawHistory() {
  drawFilters();
  const { runs, next, loading } = state.history;
  if (runs === null) {
    update($("history"), h("p", { class: "empty" }, state.away ? "The runs are shown as soon as the agent can read them." : "Loading …"));
    return;
  }
  if (!runs.length) {
    update($("history"), h("p", { class: "empty" }, filtered() ? "No run matches the filter." : "Nothing has run yet. A preview is a good start: it changes nothing."));
    return;
  }
  update(
    $("history"),
    h(
      "table",
      { class: "grid runs", role: "table", "aria-label": "Runs, the newest first" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["Started", "Job", "Outcome", "Trigger", "Found", "Held", "Changed", "Took"].map(
        (title) => h("th", { scope: "col", role: "columnheader" }, title),
      ))),
      h("tbody", { role: "rowgroup" }, runs.map(row)),
    ),
    next ? h("p", { class: "more" }, button("Load more", "moreRuns", {}, { busy: loading })) : null,
  );
}

function row(run) {
  const cell = (label, ...content) => h("td", { role: "cell", "data-label": label }, content);
  return h(
    "tr",
    { role: "row", "data-key": run._id, "data-do": "open", "data-run": run._id },
    cell("Started", h("button", { type: "button", class: "link", "data-do": "open", "data-run": run._id }, time(run.started_at), h("span", { class: "unseen" }, `: details of the run of ${run.job}`))),
    cell("Job", run.job),
    cell("Outcome", outcomeChip(run), run.dry_run ? [" ", chip("preview", "info")] : null, run.would_refuse ? [" ", chip("over the cap", "warn")] : null),
    cell("Trigger", h("bdi", null, `${triggered(run)}${run.requested_by ? ` · ${run.requested_by}` : ""}`)),
    number("Found", run.found),
    number("Held", run.held),
    number("Changed", run.changed, run.failed),
    cell("Took", lasted(run.seconds)),
  );
}

function number(label, map, failed = 0) {
  const total = sum(map);
  return h(
    "td",
    { role: "cell", "data-label": label, class: total || failed ? "number" : "number none", title: counted(map) || null },
    count(total),
    failed ? h("span", { class: "bad-text" }, ` + ${count(failed)} failed`) : null,
  );
}

// ------------------------------------------------------------------------------------------------------------ filters

export const filtered = () => Object.values(state.history.filter).some(Boolean);

function drawFilters() {
  const form = $("filters");
  const names = new Set([...jobs().map((job) => job.name), state.history.filter.job].filter(Boolean));
  choices(form.elements.job, [...names], (name) => name);
  choices(form.elements.outcome, OUTCOMES, (word) => word.replace("_", " "));
  choices(form.elements.trigger, TRIGGERS, triggerWord);
  const { pass } = state.history.filter;
  update($("pass-filter"), pass ? [chip(`pass ${pass}`, "info"), button("✕", "filterPass", { pass: "" }, { kind: "quiet", name: "All passes again" })] : null);
}

function choices(select, values, words) {
  const { value } = select;
  update(select, h("option", { value: "" }, "all"), values.map((one) => h("option", { value: one, "data-key": one }, words(one))));
  select.value = values.includes(value) ? value : "";
}
