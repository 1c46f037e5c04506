// The patches of the test pictures that activate a filter most, and their projections.
"use strict";

(() => {
  const { element, number, page, text, source, say, plural } = gpuconv;
  const MAX_RESTARTS = 3; // because of new weights, before a search gives up
  const SIDE = 64; // of a part, in CSS pixels
  const shown = new Set();

  /** Add a fold-out with a filter's top-activating patches to a layer's section. */
  function attach(view) {
    const { layer } = view;
    const choice = element("input", {
      type: "number", min: "0", max: String(layer.shape[0] - 1), step: "1", value: "0",
      "aria-label": `${layer.name}: which filter's top-activating patches`,
    });
    const words = element("p", { class: "note", role: "status" });
    const bar = element("progress", { max: "1", value: "0", hidden: true, "aria-label": "pictures looked at" });
    const list = element("ol", { class: "patches-list", "aria-label": `${layer.name}: top-activating patches` });
    const again = element("button", { type: "button", hidden: true }, "Look again");
    const fold = element("details", { class: "patches" },
      element("summary", {}, "Top-activating patches"),
      element("div", { class: "tools" }, element("label", {}, "Filter ", choice), again),
      words, bar, list);
    const part = { layer, fold, choice, words, bar, list, again, turn: 0, found: null };
    shown.add(part);
    choice.addEventListener("change", () => look(part));
    again.addEventListener("click", () => look(part));
    fold.addEventListener("toggle", () => {
      if (!fold.open) { part.turn++; return; } // a search that nobody waits for ends
      const { selected } = page;
      if (selected?.layer === layer.number) choice.value = String(selected.index[0]);
      look(part);
    });
    view.section.append(fold);
  }

  /** Ask until all pictures are seen, and show how far it is. */
  async function look(part) {
    const turn = ++part.turn;
    const { layer, choice, bar, words } = part;
    const filter = Math.min(layer.shape[0] - 1, Math.max(0, Math.round(Number(choice.value)) || 0));
    choice.value = String(filter);
    part.again.hidden = true;
    let [version, restarts] = [null, 0];
    try {
      for (;;) {
        const found = await source.patches(layer.number, filter);
        if (turn !== part.turn) return;
        if (found.patches) { bar.hidden = true; show(part, found); return; }
        if (version !== null && found.version !== version && ++restarts === MAX_RESTARTS) {
          throw new Error("The weights change faster than this can look; pause the run first.");
        }
        version = found.version;
        bar.hidden = false;
        bar.value = found.seen / found.pictures;
        words.textContent = `Looking at ${found.pictures.toLocaleString("en")} test pictures …`;
      }
    } catch (error) {
      if (turn !== part.turn) return;
      bar.hidden = true;
      part.again.hidden = false;
      words.textContent = error.message;
    }
  }

  function show(part, found) {
    const { layer, words } = part;
    part.found = found;
    const all = found.pictures === found.of ? "all" : "the first";
    words.textContent = `Filter ${found.filter}: one patch from each picture, of ${all} ` +
      `${found.pictures.toLocaleString("en")}${all === "all" ? "" : ` of ${found.of.toLocaleString("en")}`} ` +
      "test pictures. Left the patch, right its projection through the filter (deconvnet): " +
      "orange excites it, blue stands against it.";
    paint(part);
    const best = found.patches[0];
    if (best) say(`${layer.name}, filter ${found.filter}: ${plural(found.patches.length, "patch")}; the strongest, ${text(best.value)}, ${whose(best)}.`);
  }

  const whose = ({ label, image }) => `test picture ${image}, labelled ${page.model.classes[label]}`;

  function paint({ layer, found, list }) {
    if (!found) return;
    const most = Math.max(...found.patches.map(({ projection }) => gpuconv.largest(projection)));
    list.replaceChildren(...found.patches.map((patch) => element("li", {}, item(layer, patch, most))));
  }

  /** One part, its projection, and their value; it opens the unit in its own picture. */
  function item(layer, patch, most) {
    const [, rows, columns] = patch.shape;
    const drawn = [];
    if (rows * columns) {
      const back = gpuconv.bitmap(patch.projection, rows, columns, gpuconv.palette(most));
      for (const each of [gpuconv.photo(patch.shape, patch.pixels), back]) drawn.push(gpuconv.enlarge(each, SIDE));
    }
    const [filter, row, column] = patch.index;
    const words = `${whose(patch)}: value ${text(patch.value)} at row ${row}, column ${column}`;
    const about = [element("span", { class: "pair", "aria-hidden": "true" }, ...drawn), number(patch.value),
      element("small", {}, `${page.model.classes[patch.label]}, picture ${patch.image}`)];
    if (!source.openTest) return element("span", { class: "patch", role: "img", "aria-label": words }, ...about);
    return element("button", {
      type: "button", class: "patch", "aria-label": `${words}; open it`, title: words,
      click: async () => {
        await gpuconv.showSample(patch.image);
        gpuconv.select({ layer: layer.number, index: [filter, row, column] });
      },
    }, ...about);
  }

  /** The network has new weights: what is shown is of old ones. */
  function outdate() {
    for (const part of shown) {
      if (!part.found || part.again.hidden === false) continue;
      part.again.hidden = false;
      part.words.textContent += " The weights have changed since.";
    }
  }

  Object.assign(gpuconv, { patches: { attach, outdate, paintAll: () => shown.forEach(paint) } });
})();
