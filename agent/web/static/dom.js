// Making and updating elements. Text becomes text nodes and attributes are set by name, so that nothing that comes from
// a document (an id, a reason) is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes that are null or false are left out; children are nodes, texts, or nested lists of them. */
export function h(name, attributes, ...children) {
  return build(document.createElement(name), attributes, children);
}

/** An SVG element. */
export function svg(name, attributes, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== "");
}

export const $ = (id) => document.getElementById(id);

/**
 * Makes the children of `target` what is given. Elements that are alike stay, so that focus, selection and scroll
 * position survive; those with `data-key` are recognised by it wherever they are.
 */
export function update(target, ...children) {
  const fresh = document.createDocumentFragment();
  fresh.append(...flat(children));
  updateChildren(target, fresh);
}

function updateChildren(target, source) {
  const keyed = new Map();
  for (const child of target.children) {
    if (child.dataset.key) keyed.set(child.dataset.key, child);
  }
  let place = target.firstChild;
  for (const next of [...source.childNodes]) {
    const key = next.dataset?.key;
    const known = key ? keyed.get(key) : place && !place.dataset?.key ? place : null;
    if (!known || !alike(known, next)) {
      target.insertBefore(next, place);
      continue;
    }
    if (known === place) place = place.nextSibling;
    else target.insertBefore(known, place);
    updateNode(known, next);
  }
  while (place) {
    const gone = place;
    place = place.nextSibling;
    gone.remove();
  }
}

function alike(one, other) {
  return one.nodeName === other.nodeName && one.dataset?.key === other.dataset?.key;
}

function updateNode(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What the reader opened stays open.
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  updateChildren(old, fresh);
}

/** A button that does `action`; `data` goes with it. A busy one stays where the focus is, but does nothing. */
export function button(label, action, data = {}, { kind = null, busy = false, title = null, name = null } = {}) {
  const attributes = { type: "button", "data-do": action, class: kind, title, "aria-label": name };
  for (const [key, value] of Object.entries(data)) attributes[`data-${key}`] = value;
  if (busy) attributes["aria-disabled"] = "true";
  return h("button", attributes, busy ? h("span", { class: "spinner", "aria-hidden": "true" }) : null, label);
}

/** A small label with a colour and a sign, so that it says the same without the colour. */
export function chip(text, kind = "plain", title = null) {
  return h("span", { class: `chip ${kind}`, title }, text);
}
