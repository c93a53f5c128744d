// Pieces that several parts of the page draw.

import { button, chip, h } from "./dom.js";
import { now } from "./state.js";
import { ago, count, counted, local, outcome, refusal, sum, until, utc, visible } from "./words.js";

/** An instant in local time, with UTC at hand. */
export function time(text, { relative = false } = {}) {
  if (!text) return h("span", { class: "faint" }, "–");
  const date = new Date(text);
  const attributes = { datetime: text, title: `${local(date)} · ${utc(date)}` };
  if (!relative) return h("time", { ...attributes, title: utc(date) }, local(date));
  return h("time", { ...attributes, "data-ago": text }, ago(date, now()));
}

/** A countdown, which `tick` keeps going. */
export function countdown(text) {
  const date = new Date(text);
  return h("time", { datetime: text, title: `${local(date)} · ${utc(date)}`, "data-until": text }, until(date, now()));
}

/** Keeps what is relative to now true; called every second. */
export function tick() {
  for (const element of document.querySelectorAll("[data-ago], [data-until]")) {
    const { ago: past, until: coming } = element.dataset;
    const text = past ? ago(new Date(past), now()) : until(new Date(coming), now());
    if (element.textContent !== text) element.textContent = text;
  }
}

/** How a run ended. */
export function outcomeChip(run) {
  const { word, look } = outcome(run);
  return chip(word, look);
}

/** A count with what it is made of: `28`, and below it `28 orphan`. */
export function figure(label, map) {
  const total = sum(map);
  return h(
    "div",
    { class: total ? "figure" : "figure none" },
    h("dt", null, label),
    h("dd", null, h("strong", null, count(total)), total ? h("span", { class: "faint" }, Object.keys(map).length > 1 ? counted(map) : Object.keys(map)[0]) : null),
  );
}

/** A text in which backticks mark what stands in a configuration. */
const withCode = (text) => text.split("`").map((piece, index) => (index % 2 ? h("code", null, piece) : piece));

/** What a guard saw, why that matters, and what can be done: in words, with the button that consents where one may. */
export function refusalNote(run, job, { consent = true, level = "h4" } = {}) {
  const said = refusal(run, job);
  if (!said) return null;
  return h(
    "div",
    { class: "callout warn" },
    h(level, null, said.wouldRefuse ? `As a run this would be refused: ${said.title}` : `Refused: ${said.title}`),
    h("p", { class: "saw" }, h("span", { class: "label" }, "What the guard saw: "), h("bdi", null, visible(said.saw))),
    h("p", null, said.why),
    said.help.length
      ? [h("p", { class: "label" }, "What you can do:"), h("ul", null, said.help.map((one) => h("li", null, withCode(one))))]
      : null,
    consent && said.consent
      ? h("div", { class: "consent" }, h("p", null, said.consent), button("Consent and run …", "consent", { run: run._id }, { kind: "danger quiet-danger" }))
      : null,
  );
}
