// The cards of the jobs, and what is asked for all of them.

import { $, button, chip, h, svg, update } from "./dom.js";
import { countdown, figure, outcomeChip, time } from "./parts.js";
import { jobs, state } from "./state.js";
import { does, ended, lasted, outcome, plural, refusal, schedule, visible } from "./words.js";

export const SPARKS = 20; // runs in a sparkline

export function drawJobs() {
  const paused = Boolean(state.status?.paused);
  update(
    $("all-jobs"),
    button("Preview all", "preview", {}, { kind: "primary", busy: state.busy.has("preview:"), title: "Look what all enabled jobs would do, and change nothing" }),
    button("Run all now …", "run", {}, { busy: state.busy.has("run:") }),
    paused
      ? button("Resume everything", "resume", {}, { busy: state.busy.has("pause:") })
      : button("Pause everything", "pause", {}, { busy: state.busy.has("pause:"), title: "Stop the clock of every job, on every replica" }),
  );
  if (!state.status) {
    update($("jobs"), h("p", { class: "empty" }, state.away ? "The jobs are shown as soon as the agent can read them." : "Loading …"));
    return;
  }
  const cards = jobs().map((job) => card(job, paused));
  update($("jobs"), cards.length ? cards : h("p", { class: "empty" }, "No job is configured. Jobs are listed under ", h("code", null, "jobs"), " in the agent's configuration."));
}

function card(job, allPaused) {
  const running = state.recent.find((run) => run.job === job.name && !ended(run) && run.started_at);
  const last = job.last_run;
  const id = `job-${job.name}`;
  return h(
    "article",
    { class: job.enabled ? "card" : "card off", "data-key": job.name, "aria-labelledby": id },
    h(
      "header",
      null,
      h("h3", { id }, job.name),
      h("span", { class: "badges" }, badges(job, allPaused)),
      h("p", { class: "faint" }, `${job.kind} · ${schedule(job)}`),
    ),
    lastLine(running, last),
    h("dl", { class: "figures" }, figure("Found", last?.found), figure("Held", last?.held), figure("Changed", last?.changed)),
    last && refusal(last, job) ? shortRefusal(last, job) : null,
    last?.outcome !== "refused" && last?.reason && !last?.would_refuse ? h("p", { class: "reason" }, h("bdi", null, visible(last.reason))) : null,
    h("div", { class: "beat" }, sparkline(job), h("p", { class: "next" }, nextRun(job, allPaused))),
    h("footer", { class: "actions" }, cardButtons(job, allPaused)),
  );
}

function badges(job, allPaused) {
  return [
    job.enabled ? null : chip("disabled", "plain", "The schedule and “all jobs” leave it out"),
    job.paused && !allPaused ? chip("paused", "warn", "Its clock stands; it runs by hand only") : null,
    job.dry_run ? chip("dry run", "info", "It only looks: nothing but apply and restore changes anything") : null,
  ];
}

function lastLine(running, last) {
  if (running) {
    return h("p", { class: "last" }, outcomeChip(running), " since ", time(running.started_at), " ", details(running));
  }
  if (!last) return h("p", { class: "last faint" }, "It has not run yet.");
  return h(
    "p",
    { class: "last" },
    outcomeChip(last), " ",
    last.dry_run ? [chip("preview", "info"), " "] : null,
    last.trigger === "restore" ? [chip("restore", "info"), " "] : null,
    time(last.ended_at, { relative: true }), " ",
    details(last),
  );
}

function details(run) {
  return button("Details", "open", { run: run._id }, { kind: "link", name: `Details of the last run of ${run.job}` });
}

function shortRefusal(run, job) {
  const said = refusal(run, job);
  return h(
    "div",
    { class: "callout warn short" },
    h("p", null, h("strong", null, said.wouldRefuse ? "Would be refused: " : "Refused: "), `${said.title}.`),
    h("p", null, h("bdi", null, visible(said.saw))),
    button("What you can do", "open", { run: run._id }, { kind: "link", name: `What you can do: ${run.job}` }),
  );
}

function nextRun(job, allPaused) {
  if (allPaused) return "everything is paused";
  if (job.paused) return "paused";
  if (!job.enabled) return "disabled";
  return job.next_run ? ["next run ", countdown(job.next_run)] : "not scheduled";
}

function cardButtons(job, allPaused) {
  const { name } = job;
  const pausing = state.busy.has(`pause:${name}`);
  return [
    button("Preview", "preview", { job: name }, { kind: "soft", busy: state.busy.has(`preview:${name}`), name: `Preview ${name}`, title: `Look what ${name} would do, and change nothing` }),
    button("Run now …", "run", { job: name }, { busy: state.busy.has(`run:${name}`), name: `Run now: ${name}`, title: `It ${does(job)}` }),
    allPaused
      ? null
      : job.paused
        ? button("Resume", "resume", { job: name }, { busy: pausing, name: `Resume ${name}` })
        : button("Pause", "pause", { job: name }, { busy: pausing, name: `Pause ${name}` }),
  ];
}

// ---------------------------------------------------------------------------------------------------------- sparkline

const [BAR, GAP, HEIGHT, LEAST] = [5, 2, 28, 3];

/** How long the last runs took: a bar each, its colour the outcome; those that did not succeed are marked below it too. */
function sparkline({ name, last_run: last }) {
  const runs = (state.past.get(name) ?? []).slice(-SPARKS);
  if (!runs.length) return h("p", { class: "faint spark" }, last ? "" : "no runs yet"); // those there are come in a moment
  const longest = Math.max(...runs.map((run) => run.seconds ?? 0), 0.001);
  const width = runs.length * (BAR + GAP);
  const failures = runs.filter((run) => run.outcome !== "succeeded").length;
  const newest = runs[runs.length - 1];
  const label = `Duration of the last ${plural(runs.length, "run")}: the last ${lasted(newest.seconds)}, the longest ${lasted(longest)}`
    + (failures ? `; ${failures} did not succeed` : "");
  const bars = runs.map((run, index) => {
    const height = Math.max(LEAST, ((run.seconds ?? 0) / longest) * (HEIGHT - 4));
    const x = index * (BAR + GAP);
    const { word, look } = outcome(run);
    return svg(
      "g",
      { class: `bar ${look}${run.dry_run ? " dry" : ""}`, "data-key": run._id },
      svg("title", null, `${lasted(run.seconds)}, ${word}${run.dry_run ? ", preview" : ""}`),
      svg("rect", { x, y: HEIGHT - 4 - height, width: BAR, height, rx: 1 }),
      look === "good" ? null : svg("rect", { x, y: HEIGHT - 2, width: BAR, height: 2 }),
    );
  });
  return h(
    "div",
    { class: "spark" },
    svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": label }, bars),
    h("span", { class: "faint", title: "How long the last run took" }, lasted(newest.seconds)),
  );
}
