// Numbers and elements: how the page writes a float, and short ways to make and find elements.
"use strict";

(() => {
  const MINUS = "\u2212";
  let allDigits = false;

  /** A float32 as text: four digits, or as many as tell it from its neighbours. null is a value
      that is not finite, undefined one that has not been loaded. */
  function text(value) {
    if (value === undefined) return "\u2026";
    if (value === null || Number.isNaN(value)) return "not a number";
    if (!Number.isFinite(value)) return value > 0 ? "\u221e" : MINUS + "\u221e";
    return (allDigits ? shortest(value) : rounded(value)).replace("-", MINUS);
  }

  function rounded(value) {
    if (Number.isInteger(value) && Math.abs(value) < 1e5) return String(value);
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-4) return value.toExponential(2).replace("e-", "e\u2212");
    const digits = Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(size))));
    return value.toFixed(digits);
  }

  /** The fewest digits that give the same float32 again. */
  function shortest(value) {
    const exact = Math.fround(value);
    for (let digits = 1; digits < 10; digits++) {
      const short = Number(value.toPrecision(digits));
      if (Math.fround(short) === exact) return String(short);
    }
    return String(value);
  }

  function percent(share) {
    if (share === null || Number.isNaN(share)) return "not a number";
    if (share > 0 && share < 0.0001) return "<0.01 %";
    if (share < 1 && share > 0.9999) return ">99.99 %";
    return (100 * share).toFixed(share < 0.0995 || (share > 0.995 && share < 1) ? 2 : 1) + " %";
  }

  /** An element that says a number; its exact value is in `value`, and it follows the digits. */
  const number = (value, tag = "data", attributes = {}) => element(tag, {
    class: "number", [tag === "data" ? "value" : "data-value"]: String(value), ...attributes,
  }, text(value));

  /** element("p", {class: "note"}, "text", child...): attributes first, functions as listeners. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") made.addEventListener(name, value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  /** A table that scrolls. head: its columns' names; rows: elements. */
  const table = (label, head, rows) =>
    element("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": label },
      element("table", {},
        element("thead", {}, element("tr", {}, ...head.map((word) => element("th", { scope: "col" }, word)))),
        element("tbody", {}, ...rows)));

  const find = (id) => document.getElementById(id);

  /** Write all numbers of the page anew, with all digits or few. */
  function setDigits(all) {
    allDigits = all;
    for (const each of document.querySelectorAll(".number")) {
      const given = each.getAttribute("value") ?? each.getAttribute("data-value");
      if (given !== "undefined") each.textContent = text(given === "null" ? null : Number(given));
    }
  }

  let saying = 0;
  /** Say something to a screen reader, once things have settled. */
  function say(words, wait = 250) {
    clearTimeout(saying);
    saying = setTimeout(() => { find("say").textContent = words; }, wait);
  }

  /** What is asked of a run, undefined where that is gone: a newer one is on its way then. */
  const unlessGone = (asked) => asked.catch((error) => { if (!error.gone) throw error; });

  function fromBase64(encoded) {
    const binary = atob(encoded);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  /** JSON with its arrays read: {u1: base64} of bytes, {f4: base64} of float32 values. */
  const parse = (json) => JSON.parse(json, (key, value) => {
    if (value?.u1 !== undefined) return fromBase64(value.u1);
    return value?.f4 !== undefined ? new Float32Array(fromBase64(value.f4).buffer) : value;
  });

  /** The largest size of a value, without NaN. */
  const largest = (values) =>
    values.reduce((most, value) => (Math.abs(value) > most ? Math.abs(value) : most), 0);

  const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : word.endsWith("ch") ? "es" : "s"}`;

  Object.assign(gpuconv, {
    text, percent, number, element, table, find, setDigits, say, unlessGone, parse, largest, plural,
  });
})();
