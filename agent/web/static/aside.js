// The state of the agent: health, totals, allocations, and the banners above everything.

import { $, button, chip, h, svg, update } from "./dom.js";
import { countdown, time } from "./parts.js";
import { state } from "./state.js";
import { amount, count, local, plural } from "./words.js";

export function drawAside() {
  drawOverall();
  drawBanners();
  drawHealth();
  drawTotals();
  drawAllocations();
  const { status } = state;
  if (status) $("about").textContent = [status.version, status.agent].filter(Boolean).join(" · ");
  $("clock").textContent = state.statusAt ? `As of ${local(state.statusAt)}. Times are local; UTC is in their titles.` : "";
}

// ------------------------------------------------------------------------------------------------------------- overall

function overall() {
  if (!state.reach.ok) return ["bad", "Cannot be reached"];
  if (state.away) return ["bad", awayWords(state.away)];
  if (!state.health) return ["plain", "Asking …"];
  const failing = state.health.checks.filter((check) => !check.ok).length;
  if (failing) return ["bad", `${plural(failing, "check")} failing`];
  if (state.status?.paused) return ["warn", "Everything is paused"];
  return ["good", "All is well"];
}

const awayWords = ({ dependency }) => (dependency === "mongodb" ? "MongoDB is away" : "The agent cannot answer");

function drawOverall() {
  const [look, text] = overall();
  $("overall").className = `overall ${look}`;
  if ($("overall").textContent !== text) $("overall").textContent = text;
  document.title = look === "good" || look === "plain" ? "Maintenance Agent" : `${text} · Maintenance Agent`;
  document.documentElement.toggleAttribute("data-stale", !state.reach.ok);
}

function drawBanners() {
  const { reach, away, status } = state;
  update(
    $("banners"),
    reach.ok
      ? null
      : h(
        "div",
        { class: "banner bad", "data-key": "reach" },
        h("p", null, h("strong", null, "The agent cannot be reached"), ` since ${local(reach.since)} (${reach.why}). What is shown is as of then. `,
          reach.retryAt ? ["Next try ", countdown(reach.retryAt.toISOString()), "."] : "Trying …"),
        button("Try now", "tryNow"),
      ),
    reach.ok && away
      ? h(
        "div",
        { class: "banner bad", "data-key": "away" },
        h("p", null, h("strong", null, awayWords(away)), ` since ${local(away.since)}. Nothing runs until it is back; the agent goes on by itself then. `,
          h("span", { class: "faint" }, h("bdi", null, away.detail))),
      )
      : null,
    reach.ok && status?.paused
      ? h(
        "div",
        { class: "banner warn", "data-key": "paused" },
        h("p", null, h("strong", null, "Everything is paused."), " The clock stands on every replica, also after a restart, until it is resumed. Runs by hand still work."),
        button("Resume everything", "resume", {}, { busy: state.busy.has("pause:") }),
      )
      : null,
  );
}

// -------------------------------------------------------------------------------------------------------------- health

function drawHealth() {
  if (!state.health) return;
  update(
    $("health"),
    h("ul", { class: "checks" }, state.health.checks.map(({ name, ok, reason }) => h(
      "li",
      { "data-key": name, class: ok ? "good" : "bad" },
      h("span", { class: "check" }, name), " ", chip(ok ? "ok" : "failing", ok ? "good" : "bad"),
      ok ? null : h("p", { class: "reason" }, h("bdi", null, reason)),
    ))),
  );
}

// -------------------------------------------------------------------------------------------------------------- totals

const TOTALS = {
  runs: "runs",
  orphan_apps_cleaned: "orphan records deleted",
  orphan_tasks_cleaned: "orphan tasks cancelled",
  stuck_tasks_cleaned: "stuck tasks ended",
  old_tasks_cleaned: "old tasks deleted",
  errors: "errors",
};

function drawTotals() {
  const statistics = state.status?.statistics;
  $("totals-section").hidden = !statistics;
  if (!statistics) return;
  update(
    $("totals"),
    h("dl", { class: "totals" }, Object.entries(TOTALS).filter(([name]) => name in statistics).map(([name, words]) => h(
      "div",
      { class: name === "errors" && statistics[name] ? "bad-text" : null },
      h("dt", null, words),
      h("dd", null, count(statistics[name])),
    ))),
    h("p", { class: "faint" }, statistics.last_run ? ["Last run ", time(statistics.last_run, { relative: true }), ", of all replicas."] : "Nothing was changed yet. Previews do not count."),
  );
}

// --------------------------------------------------------------------------------------------------------- allocations

const RESOURCES = { cpu: "CPU", memory: "Memory", storage: "Storage" };
const VIEWS = ["booked", "owed", "used"];

function drawAllocations() {
  const allocations = state.status?.allocations ?? [];
  $("allocations-section").hidden = !allocations.length;
  if (!allocations.length) return;
  update(
    $("allocations"),
    h("p", { class: "faint legend" }, VIEWS.map((view) => [h("span", { class: `swatch ${view}` }), `${view} `]), h("span", { class: "swatch capacity" }), "capacity"),
    allocations.map(provider),
  );
}

function provider({ provider: name, up, transition, resources }, index) {
  const shown = Object.keys(RESOURCES).filter((resource) => resources?.[resource]);
  return h(
    "section",
    { class: "provider", "data-key": `${index} ${name}` },
    h("h3", null, h("bdi", null, name), " ", up === false ? chip("not reached", "bad", "Its cluster did not answer: what is used is unknown") : null, " ",
      transition ? chip(`${count(transition)} in transition`, "info", "Databases that are being made or removed: it is not judged until they are done") : null),
    shown.length
      ? h(
        "table",
        { class: "allocation" },
        h("thead", null, h("tr", null, h("th", { scope: "col" }, h("span", { class: "unseen" }, "Resource")), [...VIEWS, "capacity"].map((view) => h("th", { scope: "col" }, view)))),
        h("tbody", null, shown.map((resource) => resourceRows(resource, resources[resource]))),
      )
      : h("p", { class: "faint" }, "Nothing was read yet."),
  );
}

const known = (value) => value !== null && value !== undefined;

function resourceRows(resource, values) {
  const exceeds = (view) => known(values[view]) && known(values.capacity) && values[view] > values.capacity;
  const over = VIEWS.some(exceeds);
  return [
    h("tr", { "data-key": resource }, h("th", { scope: "row" }, resource === "cpu" ? h("span", { title: "in cores" }, RESOURCES.cpu) : RESOURCES[resource]), [...VIEWS, "capacity"].map((view) => h(
      "td",
      { class: exceeds(view) ? "bad-text" : null }, amount(resource, values[view]),
    ))),
    h("tr", { "data-key": `${resource}-bars`, "aria-hidden": "true" }, h("td", { colspan: 5 }, bars(values, over))),
  ];
}

const [THICK, ROOM] = [5, 2];

/** Booked, owed and used below each other, and a line where the capacity ends. */
function bars(values, over) {
  const most = Math.max(values.capacity ?? 0, ...VIEWS.map((view) => values[view] ?? 0)) || 1;
  const height = VIEWS.length * (THICK + ROOM);
  const limit = ((values.capacity ?? 0) / most) * 100;
  return svg(
    "svg",
    { class: over ? "bars over" : "bars", viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", height },
    svg("rect", { class: "room", x: 0, y: 0, width: limit, height }),
    VIEWS.map((view, index) => svg("rect", {
      class: view, x: 0, y: index * (THICK + ROOM) + 1, width: ((values[view] ?? 0) / most) * 100, height: THICK,
    })),
    over ? svg("rect", { class: "limit", x: Math.max(0, limit - 0.4), y: 0, width: 0.8, height }) : null,
  );
}
