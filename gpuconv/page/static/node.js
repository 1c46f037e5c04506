// The inspector: how one number came about.
"use strict";

(() => {
  const { element, number, find, page, say, text } = gpuconv;
  let asked = 0;

  /** Open a node: {layer, index}. Asks the source, and shows its answer. */
  async function open(node, loud = true) {
    const turn = ++asked;
    if (!page.run) return;
    const found = await gpuconv.unlessGone(gpuconv.explain(page.run, node.layer, node.index));
    if (!found || turn !== asked) return;
    show(found);
    if (loud) say(summary(found));
  }

  const layerOf = (found) => page.model.layers[found.layer];

  function title(found) {
    const layer = layerOf(found);
    const softmax = layer.kind === "softmax" || layer.number === page.model.scores;
    const name = softmax ? `class ${page.model.classes[found.index[0]]}`
      : gpuconv.layers.words(found.index);
    return `${layer.name} · ${name}`;
  }

  function summary(found) {
    const sum = found.products
      ? ` The sum of ${found.products.length} products is ${text(found.sum)}` +
        (found.bias === null ? "." : `, the bias ${text(found.bias)}.`)
      : "";
    return `${title(found)}: ${text(found.value)}.${sum}`;
  }

  function show(found) {
    const body = find("node-body");
    find("node").dataset.shown = JSON.stringify([found.layer, found.index]);
    find("node-title").textContent = title(found);
    const held = page.maps.get(found.layer);
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    if (held) {
      const most = Math.max(Math.abs(held.min), Math.abs(held.max));
      swatch.style.background = gpuconv.css(gpuconv.palette(most)(found.value));
    }
    const value = number(found.value, "data", { id: "node-value" });
    const kept = [...body.querySelectorAll("details")].some((fold) => fold.open);
    body.replaceChildren(element("p", { class: "value" }, swatch, value), ...(parts[found.kind] || other)(found));
    const fold = body.querySelector("details");
    if (fold && kept) fold.open = true;
    body.append(...onward(found));
    find("node").classList.add("filled");
  }

  /** A number of an equation, by the name of its part. */
  const named = (value, name) => number(value, "data", { "data-part": name });
  const part = (label, value, name) =>
    element("span", { class: "part" }, element("small", {}, label), named(value, name));
  const sign = (word) => element("span", { class: "sign" }, word);
  const equation = (...children) => element("div", { class: "equation" }, ...children);
  /** An equation that ends with the value. */
  const gives = (found, ...children) =>
    equation(...children, sign("="), part("result", found.value, "value"));
  const note = (words) => element("p", { class: "note" }, words);

  /** A link to another node. */
  function link({ layer, index, value }, name = "x") {
    const words = `${page.model.layers[layer].name} ${gpuconv.layers.words(index)}`;
    return element("button", {
      type: "button", class: "part opens", click: () => gpuconv.select({ layer, index }),
    }, element("small", {}, words), named(value, name));
  }

  function dot(found) {
    return [
      gives(found, part(`Σ of ${found.products.length} products`, found.sum, "sum"),
        ...(found.bias === null ? [] : [sign("+"), part("bias", found.bias, "bias")])),
      gpuconv.terms.pictures(found, gpuconv.select),
      gpuconv.terms.table(found),
    ];
  }

  /** A window's values in their places, the winner marked. */
  function windowTable(found) {
    const { rows, columns, top, left, from, channels } = found.window;
    if (rows * columns > 400) return note(`A window of ${rows} by ${columns} values.`);
    const cell = (i) => {
      if (!gpuconv.terms.inside(found, i)) return element("td", { class: "padding" }, "padding");
      const index = gpuconv.readAt(found.window, i);
      const won = i === found.winner;
      return number(found.x[i], "td", {
        class: `number opens${won ? " winner" : ""}`, "aria-label": won && `${text(found.x[i])}, the winner`,
        click: () => gpuconv.select({ layer: from, index }),
      });
    };
    const body = element("tbody");
    for (let i = 0; i < rows * columns; i++) {
      if (i % columns === 0) body.append(element("tr"));
      body.lastChild.append(cell(i));
    }
    const { name } = page.model.layers[from];
    const words = `The window in ${name}, map ${channels[0]}, from row ${top}, column ${left}`;
    return element("div", { class: "scrolls" }, note(words),
      element("table", { class: "window", "aria-label": words }, body));
  }

  function winner(found) {
    if (found.winner === null) return [note("The window lies in the padding alone.")];
    const index = gpuconv.readAt(found.window, found.winner);
    const read = { layer: found.window.from, index, value: found.x[found.winner] };
    return [
      equation(sign("largest of"), part("values", found.x.length, "count"), sign("is"),
        link(read, "winner")),
      windowTable(found),
    ];
  }

  const mean = (found) => [
    gives(found, sign("sum ÷"), part("divisor", found.divisor, "divisor")),
    windowTable(found),
  ];

  const formula = (words) => (found) => [gives(found, link(found.read[0]), sign(words))];
  const moved = (words) => (found) =>
    [equation(link(found.read[0]), sign(words), part("result", found.value, "value"))];

  function softmax(found) {
    const own = found.exps[found.index[0]];
    const order = [...found.x.keys()].sort((a, b) => found.x[b] - found.x[a]).slice(0, 20);
    const rows = order.map((k) => element("tr", k === found.index[0] ? { class: "winner" } : {},
      element("th", { scope: "row" }, page.model.classes[k] ?? String(k)),
      number(found.x[k], "td"), number(found.exps[k], "td"),
      number(Math.fround(found.exps[k] / found.sum), "td")));
    const left = found.x.length - order.length;
    return [
      gives(found, part("e^(score − largest)", own, "exp"), sign("÷"), part("sum of all", found.sum, "sum")),
      gpuconv.table("classes", ["class", "score", "e^(score − largest)", "probability"], rows),
      ...(left > 0 ? [note(`${left} classes of lower scores are left out.`)] : []),
    ];
  }

  const batchNorm = (found) => [
    gives(found, sign("("), link(found.read[0]), sign("−"), part("mean", found.mean, "mean"),
      sign(") ÷ √("), part("variance", found.var, "var"), sign("+"), part("eps", found.eps, "eps"), sign(") ×"),
      part("weight", found.weight, "weight"), sign("+"), part("bias", found.bias, "bias")),
  ];

  const responseNorm = (found) => [
    gives(found, part("value", found.x[found.center], "x"), sign("÷ ("), part("k", found.k, "k"), sign("+"),
      part("a", found.a, "a"), sign(`× sum of ${found.x.length} squares ) ^`), part("beta", found.beta, "beta")),
  ];

  const both = (mark) => (found) =>
    [gives(found, link(found.read[0], "x0"), sign(mark), link(found.read[1], "x1"))];

  const other = (found) => [note(found.kind === "input"
    ? "A pixel of the picture, as the network reads it."
    : `How a ${layerOf(found).type} computes this is not shown.`)];

  const parts = {
    conv: dot, linear: dot, max_pool: winner, avg_pool: mean, sum_pool: mean, adaptive_avg_pool: mean,
    relu: formula("→ max(0, x)"), tanh: formula("→ tanh x"),
    scaled_tanh: formula("→ 1.7159 tanh(2x/3)"), sigmoid: formula("→ 1 / (1 + e\u207b\u02e3)"),
    dropout: moved("passes as"), identity: moved("stays"), flatten: moved("moves to"),
    concat: moved("is copied as"), add: both("+"), multiply: both("×"), batch_norm: batchNorm, response_norm: responseNorm, softmax,
  };

  /** What reads this value next. */
  function onward(found) {
    const elementwise = ["relu", "tanh", "scaled_tanh", "sigmoid", "batch_norm", "dropout", "identity"];
    const reads = ({ from, kind }) => from.includes(found.layer) && elementwise.includes(kind);
    return page.model.layers.filter(reads).map((layer) => {
      const read = { layer: layer.number, index: found.index, value: gpuconv.layers.valueAt(layer, found.index) };
      const next = link(read, "then");
      if (read.value === undefined) fill(next, read);
      return equation(sign(`then ${layer.type}:`), next);
    });
  }

  /** Ask for the value of a link whose layer has not been loaded. */
  async function fill(link, { layer, index }) {
    const found = await gpuconv.unlessGone(gpuconv.source.values(page.run, [gpuconv.single(layer, index)]));
    if (found) link.lastChild.replaceWith(named(found[0][0], "then"));
  }

  function close() {
    asked++;
    find("node").classList.remove("filled");
    find("node-title").textContent = "Nothing open";
    find("node-body").replaceChildren(note("Click any value of any layer, or walk there with the arrow keys."));
    delete find("node").dataset.shown;
  }

  Object.assign(gpuconv, { node: { open, close } });
})();
