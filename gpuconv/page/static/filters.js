// A layer's filters as images, now and before training.
"use strict";

(() => {
  const { element, page, source } = gpuconv;
  const MOST_FILTERS = 64;
  const MAX_CHANNELS = 16;
  const open = new Set();

  /** Add a fold-out with the filters to a layer's section. */
  function attach(view) {
    const { layer } = view;
    const drawing = element("div", { class: "filters-drawing" });
    const fold = element("details", { class: "filters" },
      element("summary", {}, layer.kind === "conv" ? "Filters" : "Weights"), drawing);
    const shown = { view, drawing };
    fold.addEventListener("toggle", () => {
      if (fold.open) { open.add(shown); fill(shown); } else open.delete(shown);
    });
    view.section.append(fold);
  }

  /** Ask for the filters again, as after a training step. */
  const refresh = () => open.forEach(fill);

  async function fill(shown) {
    if (shown.filling) { shown.again = true; return; }
    shown.filling = true;
    try {
      const { layer } = shown.view;
      const now = await source.filters(layer.number, "now");
      const sheets = [["now", now]];
      if (page.model.start) {
        sheets.unshift(["before training", await source.filters(layer.number, "start")]);
      }
      const most = Math.max(...sheets.map(([, found]) => gpuconv.largest(found.values)));
      shown.drawing.replaceChildren(
        ...sheets.map(([title, found]) => sheet(shown.view, title, found, most)),
        leftOut(now.shape));
    } finally {
      shown.filling = false;
    }
    if (shown.again) { shown.again = false; fill(shown); }
  }

  /** One sheet: a row of kernels for each filter, or an image for each row of a linear layer. */
  function sheet({ layer, section }, title, found, most) {
    const [filters, channels, rows, columns] = asKernels(layer, found.shape);
    const [k, c] = [Math.min(filters, MOST_FILTERS), Math.min(channels, MAX_CHANNELS)];
    const side = k * c <= 32 ? 50 : 34;
    const cell = Math.max(1, Math.min(10, Math.floor(side / Math.max(rows, columns))));
    const [w, h] = [columns * cell + 2, rows * cell + 2];
    const group = c * w + 8;
    const room = Math.max(group, section.clientWidth - 8);
    const across = Math.max(1, Math.floor(room / group));
    const canvas = element("canvas", {
      role: "img",
      "aria-label": `${layer.name}: ${k} filters ${title}, values from ${gpuconv.text(-most)} to ${gpuconv.text(most)}`,
    });
    const context = gpuconv.sized(canvas, Math.min(across, k) * group, Math.ceil(k / across) * (h + 6));
    const colour = gpuconv.palette(most);
    const size = rows * columns;
    for (let i = 0; i < k; i++) {
      for (let j = 0; j < c; j++) {
        const values = found.values.subarray((i * channels + j) * size);
        const kernel = gpuconv.bitmap(values, rows, columns, colour);
        context.drawImage(kernel, (i % across) * group + j * w, Math.floor(i / across) * (h + 6), w - 2, h - 2);
      }
    }
    return element("figure", {}, element("figcaption", {},
      `${title}, ${gpuconv.text(-most)} to ${gpuconv.text(most)}`), canvas);
  }

  /** (K, features) as kernels of the maps that were flattened, or one row. */
  function asKernels(layer, shape) {
    if (shape.length === 4) return shape;
    const { layers } = page.model;
    const before = gpuconv.unflattened(layers, layers[layer.from[0]]);
    if (before.shape.length === 3) return [shape[0], ...before.shape];
    const columns = Math.ceil(Math.sqrt(shape[1]));
    return shape[1] % columns ? [shape[0], 1, 1, shape[1]] : [shape[0], 1, shape[1] / columns, columns];
  }

  function leftOut([filters, channels]) {
    const words = [];
    if (filters > MOST_FILTERS) words.push(`${filters - MOST_FILTERS} filters`);
    if (channels > MAX_CHANNELS) words.push(`channels beyond the first ${MAX_CHANNELS} of each`);
    return words.length ? element("p", { class: "note" }, `Left out: ${words.join(", ")}.`) : "";
  }

  Object.assign(gpuconv, { filters: { attach, refresh } });
})();
