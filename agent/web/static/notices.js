// What the page tells: short notices, and questions that are answered before something is done.

import { $, button, h, update } from "./dom.js";

const SHOWN_SECONDS = 8; // long enough to read twice; what went wrong stays until it is closed
const notices = [];
let number = 0;

/** Tells what was done, or (`bad`) what went wrong: in the open dialog, else in a corner of the page. */
export function tell(text, { bad = false } = {}) {
  if ($("sheet").open) {
    const place = $("sheet-notice");
    place.className = bad ? "bad-text" : "";
    place.textContent = text;
    return;
  }
  const notice = { id: ++number, text, bad };
  notices.push(notice);
  draw();
  if (!bad) setTimeout(() => closeNotice(notice.id), SHOWN_SECONDS * 1000);
}

/** Tells a screen reader what everybody else sees. */
export function announce(text) {
  $("announcer").textContent = text;
}

export function closeNotice(id) {
  const index = notices.findIndex((notice) => notice.id === Number(id));
  if (index < 0) return;
  notices.splice(index, 1);
  draw();
}

function draw() {
  update($("notices"), notices.map(({ id, text, bad }) => h(
    "div",
    { "data-key": id, class: `notice ${bad ? "bad" : "good"}`, role: bad ? "alert" : "status" },
    h("p", null, text),
    button("✕", "closeNotice", { id }, { kind: "quiet", name: "Close this notice" }),
  )));
}

let answer = null;

/**
 * Asks before something is done; resolves to the answer. The safe answer has the focus. With `acknowledge` a box has to
 * be ticked first, and it never is beforehand.
 */
export function confirm({ title, body, label, danger = false, acknowledge = null }) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  const box = acknowledge
    ? h("label", { class: "acknowledge" }, h("input", { type: "checkbox", id: "acknowledged" }), h("span", null, acknowledge))
    : null;
  $("confirm-body").replaceChildren(...[body].flat().filter(Boolean), ...(box ? [box] : []));
  const cancel = button("Cancel", "answer", { answer: "no" });
  cancel.autofocus = true;
  const go = button(label, "answer", { answer: "yes" }, { kind: danger ? "danger" : "primary" });
  go.disabled = Boolean(box);
  box?.addEventListener("change", (event) => { go.disabled = !event.target.checked; });
  $("confirm-actions").replaceChildren(cancel, go);
  dialog.showModal();
  return new Promise((resolve) => { answer = resolve; });
}

/** The answer to the question, from its buttons. */
export function give(yes) {
  const resolve = answer;
  answer = null;
  $("confirm").close();
  resolve?.(yes);
}

// Escape is a no.
$("confirm").addEventListener("close", () => give(false));
