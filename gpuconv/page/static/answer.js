// The network's answer as bars, and the evidence for a class in the picture.
"use strict";

(() => {
  const { element, find, largest, page, percent, say } = gpuconv;
  const MOST_BARS = 10;
  const SIDE = 128; // of the map, in CSS pixels
  let held = null; // the explanation that is shown: {shape, values}
  let asking = false;
  let again = false;
  let cost = 0; // of the last explanation, in ms
  const SLOW = 60; // ms: slower ones wait until the drawing rests
  const WORDS = {
    gradient: "orange: the score grows as the pixel gets brighter; blue: it falls",
    saliency: "how much the score changes with the pixel, either way",
    "input-x-gradient": "pixel times gradient: orange adds to the score; blue takes from it",
    "smooth-grad": "the gradient, averaged over noisy copies of the picture",
    "guided-backprop": "the gradient, with only positive values passed back through each ReLU",
    deconvnet: "what the class would draw, sent back through the filters",
    "grad-cam": "where the last maps have evidence for the class",
    "guided-grad-cam": "guided backprop where Grad-CAM is strong",
    occlusion: "orange: covering the place lowers the score; blue: it raises it",
  };

  function begin() {
    const { model } = page;
    const [method, target] = [find("method"), find("target")];
    method.append(new Option("nothing", ""), ...model.methods.map(({ name, title }) => new Option(title, name)));
    target.append(new Option("the answer", ""), ...model.classes.map((name, k) => new Option(name, k)));
    find("explain").hidden = model.methods.length === 0;
    method.onchange = target.onchange = async () => {
      cost = 0;
      await explain();
      find("explain").scrollIntoView({ block: "nearest" });
    };
  }

  /** Show the probabilities; `loud` once the drawing rests. */
  function show(probabilities, loud) {
    const order = probabilities.map((_, k) => k);
    const best = order.reduce((a, b) => ((probabilities[b] ?? -1) > (probabilities[a] ?? -1) ? b : a));
    const shown = order.length <= MOST_BARS ? order
      : order.sort((a, b) => probabilities[b] - probabilities[a]).slice(0, MOST_BARS);
    find("bars").replaceChildren(...shown.map((k) => bar(k, probabilities[k], k === best)));
    find("best").textContent = page.model.classes[best];
    find("best").dataset.class = best;
    find("sure").textContent = percent(probabilities[best]);
    if (loud) say(`The answer is ${page.model.classes[best]}, ${percent(probabilities[best])}.`, 500);
    return best;
  }

  function bar(k, share, best) {
    const fill = element("span", { class: "fill" });
    fill.style.width = `${100 * (share || 0)}%`;
    const row = element("li", best ? { class: "best" } : {},
      element("button", {
        type: "button", class: "label", title: "how softmax made this",
        click: () => gpuconv.select({ layer: page.model.layers.length - 1, index: [k] }),
      }, page.model.classes[k]),
      element("span", { class: "bar", "aria-hidden": "true" }, fill),
      element("span", { class: "share" }, percent(share)));
    row.dataset.share = share;
    return row;
  }

  /** Ask again for the evidence; while the picture is still being drawn, only if that is quick. */
  async function explain(drawing = false) {
    const method = find("method").value;
    find("explain-picture").hidden = !method || !page.run;
    if (!method || !page.run || (drawing && cost > SLOW)) return;
    if (asking) { again = true; return; }
    asking = true;
    const since = performance.now();
    const { run } = page;
    const target = find("target").value === "" ? page.best : Number(find("target").value);
    try {
      held = await gpuconv.source.explanation(run, method, target);
      paint();
      find("explain-words").textContent = held.values.some((value) => value !== 0)
        ? `Class ${page.model.classes[target]}; ${WORDS[method]}.`
        : `Class ${page.model.classes[target]}: the method finds no evidence for it.`;
    } catch (error) {
      if (!error.gone) find("explain-words").textContent = error.message;
    } finally {
      asking = false;
      cost = performance.now() - since;
    }
    if (again) { again = false; explain(); }
  }

  /** The map of the explanation beside the picture it is of. */
  function paint() {
    if (!held || find("explain-picture").hidden) return;
    const { shape: [, rows, columns], values } = held;
    const most = largest(values);
    const colour = gpuconv.palette(most);
    gpuconv.enlarge(gpuconv.bitmap(values, rows, columns, colour), SIDE, find("explain-map"));
    const low = values.some((value) => value < 0) ? -most : 0; // 0 where nothing speaks against
    gpuconv.legend(find("explain-colours"), find("explain-range"), low, most, colour);
    const input = page.maps.get(0);
    if (!input) return;
    const picture = gpuconv.photo(page.model.layers[0].shape, input.values, input.min, input.max);
    gpuconv.enlarge(picture, SIDE, find("explain-input"));
  }

  Object.assign(gpuconv, { answer: { begin, show, explain, paint } });
})();
