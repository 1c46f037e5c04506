// The sums of products, as small pictures and as a table of numbers.
"use strict";

(() => {
  const { element, number, page, text } = gpuconv;
  const MOST_GROUPS = 32;
  const MAX_ROWS = 600;

  /** The terms cut into groups: a window's channels, the maps that were flattened, or one row.
      [{name, begin, rows, columns}], and the index of a term in `at(i)`. */
  function grouped({ window }) {
    const { layers } = page.model;
    const source = gpuconv.unflattened(layers, layers[window.from]);
    const maps = source.shape.length === 3;
    let { channels, rows, columns } = window;
    if (maps && source.number !== window.from) {
      channels = Array.from({ length: source.shape[0] }, (_, c) => c);
      [, rows, columns] = source.shape;
    }
    const groups = channels.map((channel, g) => ({
      name: maps ? `${source.name} map ${channel}` : source.name,
      begin: g * rows * columns, rows, columns,
    }));
    const at = (i) => (maps ? gpuconv.readAt({ ...window, channels, rows, columns }, i) : [i]);
    return { groups, at, source: source.number };
  }

  const inside = ({ inside: marks }, i) => marks[i % marks.length];

  /** The groups as rows of three pictures: inputs, weights, products, and the products' sum. */
  function pictures(found, open) {
    const { groups, at, source } = grouped(found);
    for (const group of groups) {
      const products = found.products.slice(group.begin, group.begin + group.rows * group.columns);
      group.sum = products.reduce((a, b) => a + b, 0);
    }
    const scales = [found.x, found.w, found.products].map(gpuconv.largest);
    const shown = groups.length > MOST_GROUPS
      ? [...groups].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum)).slice(0, MOST_GROUPS) : groups;
    const body = element("div", { class: "terms" },
      element("div", { class: "terms-head", "aria-hidden": "true" },
        element("span", {}, "input"), element("span", {}, "× weight"), element("span", {}, "= product"),
        element("span", {}, "sum")));
    for (const group of shown) {
      body.append(element("div", { class: "terms-row" },
        element("span", { class: "terms-name" }, group.name),
        ...[found.x, found.w, found.products].map((values, part) =>
          picture(values, group, scales[part], ["inputs", "weights", "products"][part], (i) =>
            open({ layer: source, index: at(i) }), (i) => inside(found, i))),
        number(Math.fround(group.sum))));
    }
    if (shown.length < groups.length) {
      body.append(element("p", { class: "note" },
        `The ${shown.length} largest of ${groups.length} groups; ${groups.length - shown.length} left out here.`));
    }
    return body;
  }

  /** One group's values as a small picture; a click opens what was read. */
  function picture(values, group, most, what, open, there) {
    const size = group.rows * group.columns;
    const columns = group.rows > 1 ? group.columns : Math.min(group.columns, 12); // a row wraps
    const rows = Math.ceil(size / columns);
    const room = window.innerWidth <= 720 ? 72 : 76; // three beside a sum of all digits
    const cell = Math.max(2, Math.min(18, Math.floor(room / columns)));
    const canvas = element("canvas", {
      role: "img", "aria-label": `${group.name}, ${what}; the numbers are in the table below`,
    });
    const context = gpuconv.sized(canvas, columns * cell, rows * cell);
    const own = values.slice(group.begin, group.begin + size);
    gpuconv.squares(context, own, columns, cell, gpuconv.palette(most));
    context.strokeStyle = gpuconv.style("--line");
    context.lineWidth = 1;
    for (let i = 0; i < size; i++) {
      if (there(i)) continue;
      const [x, y] = [(i % columns) * cell, Math.floor(i / columns) * cell]; // hatch the padding
      context.beginPath();
      context.moveTo(x, y + cell);
      context.lineTo(x + cell, y);
      context.stroke();
    }
    const index = (event) => gpuconv.squareAt(canvas, event, size, columns, cell);
    canvas.addEventListener("pointermove", (event) => {
      const i = index(event);
      canvas.title = i < 0 ? "" : there(i) ? text(own[i]) : "padding";
    });
    if (what === "inputs") {
      canvas.classList.add("opens");
      canvas.addEventListener("click", (event) => {
        const i = index(event);
        if (i >= 0 && there(i)) open(group.begin + i);
      });
    }
    return canvas;
  }

  /** All terms as a table that folds out: filled when it is opened. */
  function table(found) {
    const count = found.x.length;
    const fold = element("details", { class: "all-terms" },
      element("summary", {}, `All ${count.toLocaleString("en")} products as numbers`));
    fold.addEventListener("toggle", () => {
      if (!fold.open || fold.querySelector("table")) return;
      const { at } = grouped(found);
      const rows = Array.from({ length: Math.min(count, MAX_ROWS) }, (_, i) => element("tr", {},
        element("th", { scope: "row" }, inside(found, i) ? at(i).join(", ") : "padding"),
        ...[found.x[i], found.w[i], found.products[i]].map((value) => number(value, "td"))));
      fold.append(gpuconv.table("products", ["element", "input", "weight", "product"], rows));
      const left = count - rows.length;
      if (left) fold.append(element("p", { class: "note" }, `${left} more are left out.`));
    });
    return fold;
  }

  Object.assign(gpuconv, { terms: { pictures, table, inside } });
})();
