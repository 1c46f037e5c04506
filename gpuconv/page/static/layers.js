// The network: a section for each layer with all its maps on one canvas, to point at or walk over.
"use strict";

(() => {
  const { element, find, page, text, say, plural } = gpuconv;
  const views = []; // by layer number

  /** Make the sections. */
  function begin() {
    const place = find("layers");
    for (const layer of page.model.layers) {
      const view = makeView(layer);
      views.push(view);
      place.append(view.section);
    }
    new ResizeObserver(() => { reserveAll(); paintAll(); }).observe(place);
    reserveAll();
    watchSight();
  }

  function makeView(layer) {
    const canvas = element("canvas", {
      tabindex: "0", role: "application", "aria-roledescription": "feature maps",
      "aria-label": `${layer.name}, ${shapeWords(layer)}`, "aria-describedby": "walk-help",
    });
    const scale = element("canvas", { "aria-hidden": "true" });
    gpuconv.sized(scale, 72, 8); // and a space: the room that the legend will take
    const legend = element("span", { class: "legend" }, scale, element("span", { class: "range" }, "\u00a0"));
    const pager = makePager(layer);
    const section = element("section", { class: "layer", "aria-labelledby": `name-${layer.number}` },
      element("header", {},
        element("h3", { id: `name-${layer.number}` }, layer.name),
        element("p", { class: "what" }, whatItDoes(layer)),
        legend),
      element("div", { class: "maps" }, canvas, pager));
    const view = { layer, section, canvas, legend, pager, first: 0, seen: false };
    view.section.dataset.layer = layer.number;
    if (layer.filters) gpuconv.filters.attach(view);
    if (page.model.patches.includes(layer.number)) gpuconv.patches.attach(view);
    listen(view);
    return view;
  }

  const shapeWords = ({ shape }) =>
    shape.length === 3 ? `${plural(shape[0], "map")} of ${shape[1]} by ${shape[2]}`
      : plural(shape[0], "value");

  /** One line: what the layer computes. */
  function whatItDoes(layer) {
    const by = (sides) => `${sides[0]}×${sides[1]}`;
    const shape = layer.shape.join(" × ");
    const parameters = layer.parameters ? `, ${plural(layer.parameters, "parameter")}` : "";
    const step = layer.stride?.some((s) => s > 1) ? ` every ${by(layer.stride)}` : "";
    const words = {
      input: "what the network sees",
      conv: layer.kernel && `${plural(layer.shape[0], "filter")} of ${by(layer.kernel)}${step}`,
      linear: "every input, weighted", relu: "negative values become 0", tanh: "tanh",
      scaled_tanh: "1.7159 tanh(2x/3)", sigmoid: "1 / (1 + e\u207b\u02e3)",
      max_pool: layer.kernel && `the largest of each ${by(layer.kernel)}${step}`,
      avg_pool: layer.kernel && `the mean of each ${by(layer.kernel)}${step}`,
      sum_pool: layer.kernel && `the sum of each ${by(layer.kernel)}${step}`,
      adaptive_avg_pool: "means over parts", batch_norm: "each map to mean 0, deviation 1, rescaled",
      response_norm: "each value against its neighbouring maps", flatten: "all maps in one row",
      dropout: "passes all while not training", identity: "unchanged",
      softmax: "scores to probabilities", add: "the sum of both ways", multiply: "the product of both ways", concat: "maps side by side",
    }[layer.kind] || layer.type;
    return `${words} → ${shape}${parameters}`;
  }

  // ---- channels by pages ---------------------------------------------------------------------

  function makePager(layer) {
    if (layer.page >= layer.shape[0] || layer.shape.length !== 3) return null;
    const words = element("span", { class: "pager-words" });
    const pages = Math.ceil(layer.shape[0] / layer.page);
    const turner = (step, sign, where) => element("button", {
      type: "button", "aria-label": `${layer.name}: channels ${where}`,
      click: () => {
        const view = views[layer.number];
        turnTo(view, ((view.first / layer.page + step + pages) % pages) * layer.page);
      },
    }, sign);
    return element("div", { class: "pager" }, turner(-1, "‹", "before"), words, turner(1, "›", "after"));
  }

  /** Show the page that has the channel. */
  function turnTo(view, channel) {
    const { number, shape, page: size } = view.layer;
    const first = Math.floor(channel / size) * size;
    if (shape.length !== 3 || first === view.first) return;
    view.first = first;
    page.maps.delete(number);
    demand(view);
  }

  function pagerWords(view) {
    if (!view.pager) return;
    const { page: size, shape } = view.layer;
    const last = Math.min(shape[0], view.first + size);
    view.pager.querySelector(".pager-words").textContent =
      `channels ${view.first} to ${last - 1} of ${shape[0]}; ${shape[0] - (last - view.first)} left out`;
  }

  /** Ask for the maps of layers that are in sight and were not sent with the run. */
  async function demand(view) {
    const { run } = page;
    const { number } = view.layer;
    const held = page.maps.get(number);
    if (!run || !view.seen || view.asking || (held && held.first === view.first)) return;
    view.asking = true;
    const asked = gpuconv.unlessGone(gpuconv.source.maps(run, number, view.first));
    const found = await asked.finally(() => { view.asking = false; });
    if (page.run !== run) { demand(view); return; }
    if (found) page.maps.set(number, found);
    paint(view);
  }

  function watchSight() {
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const view = views[Number(entry.target.dataset.layer)];
        view.seen = entry.isIntersecting;
        if (view.seen) { paint(view); demand(view); }
      }
    }, { rootMargin: "300px" });
    views.forEach((view) => watcher.observe(view.section));
  }

  /** Draw a layer's maps if they are in sight, and ask for them if they are not there. */
  function paint(view) {
    pagerWords(view);
    if (view.seen && !gpuconv.maps.paint(view)) demand(view);
  }

  const paintAll = () => views.forEach(paint);

  /** Give each layer the room that its maps will take, drawn or not, so that nothing moves later. */
  function reserveAll() {
    const sizes = views.map(gpuconv.maps.layout); // all reads before the first write
    views.forEach(({ canvas }, i) => {
      canvas.style.width = `${sizes[i].width}px`;
      canvas.style.height = `${sizes[i].height}px`;
    });
  }

  // ---- pointing and walking ------------------------------------------------------------------

  /** An element's value; undefined while its channel has not been loaded. */
  function valueAt(layer, index) {
    const held = page.maps.get(layer.number);
    if (!held) return undefined;
    const [channel, ...rest] = index;
    const flat = gpuconv.ravel([channel - held.first, ...rest], layer.shape);
    return held.values[flat];
  }

  function listen(view) {
    const { canvas, layer } = view;
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch") return;
      hover(view, gpuconv.maps.elementAt(view, event), event);
    });
    canvas.addEventListener("pointerleave", () => hover(view, null));
    canvas.addEventListener("click", (event) => {
      const index = gpuconv.maps.elementAt(view, event);
      if (index) gpuconv.select({ layer: layer.number, index });
    });
    canvas.addEventListener("keydown", (event) => walk(view, event));
    canvas.addEventListener("focus", () => {
      if (page.selected?.layer !== layer.number && canvas.matches(":focus-visible")) {
        gpuconv.select({ layer: layer.number, index: middle(view) }, false);
      }
    });
  }

  const middle = ({ layer, first }) =>
    layer.shape.length === 3
      ? [first, Math.floor(layer.shape[1] / 2), Math.floor(layer.shape[2] / 2)] : [0];

  function hover(view, index, event) {
    const tip = find("tip");
    tip.hidden = !index;
    const before = JSON.stringify(page.hovered);
    page.hovered = index && { layer: view.layer.number, index };
    if (index) {
      tip.textContent = `${view.layer.name} ${words(index)}: ${text(valueAt(view.layer, index))}`;
      const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
      tip.style.transform = `translate(${left}px, ${event.clientY + 18}px)`;
    }
    if (JSON.stringify(page.hovered) !== before) paintAll();
  }

  const words = (index) =>
    index.length === 3 ? `map ${index[0]}, row ${index[1]}, column ${index[2]}` : `value ${index[0]}`;

  /** Arrows move within a map, [ and ] between maps, Page keys between layers, Enter opens. */
  function walk(view, event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { shape, number } = view.layer;
    const here = page.selected?.layer === number ? page.selected.index : middle(view);
    const moves = {
      ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1],
      "[": [-1, 0, 0], "]": [1, 0, 0],
    };
    if (event.key === "PageDown" || event.key === "PageUp") {
      const next = views[number + (event.key === "PageDown" ? 1 : -1)];
      if (next) { next.section.scrollIntoView({ block: "nearest" }); next.canvas.focus(); }
    } else if (event.key === "Enter" || event.key === " ") {
      gpuconv.select({ layer: number, index: here }, true);
      find("node").focus({ preventScroll: true });
    } else if (moves[event.key]) {
      let step = moves[event.key];
      if (shape.length !== 3) step = [step[0] + step[2] + (step[1] * (view.at?.columns || 1))];
      const next = here.map((at, axis) =>
        Math.min(shape[axis] - 1, Math.max(0, at + step[axis] * (event.shiftKey ? 5 : 1))));
      turnTo(view, next[0]);
      gpuconv.select({ layer: number, index: next }, false);
    } else return;
    event.preventDefault();
  }

  function announce(node) {
    const layer = page.model.layers[node.layer];
    say(`${layer.name} ${words(node.index)}: ${text(valueAt(layer, node.index))}`);
  }

  /** New maps have come: keep those of the pages that are shown. */
  function received(maps) {
    page.maps.clear();
    for (const found of maps) {
      if (views[found.layer].first === found.first) page.maps.set(found.layer, found);
    }
    paintAll();
  }

  const reveal = (node) => {
    const view = views[node.layer];
    turnTo(view, node.index[0]);
    view.section.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };

  Object.assign(gpuconv, {
    layers: {
      begin, paintAll, received, reveal, announce, words, valueAt,
      turnTo: (node) => turnTo(views[node.layer], node.index[0]),
      boxOf: ({ layer, index }) =>
        gpuconv.maps.boxOf(views[layer], index[0], gpuconv.single(layer, index)),
    },
  });
})();
