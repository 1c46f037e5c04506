// The page: its state, and what happens when the picture, the choice or the network changes.
"use strict";

(() => {
  const { page, find, pad, layers, node, answer, filters, source, plural } = gpuconv;

  // ---- running ---------------------------------------------------------------------------------

  let running = false;
  let waiting = null; // what changed while a run was on its way
  let penUp = null;
  page.settled = () => !running && waiting === null;

  /** The picture changed: "stroke" while drawing, "end" when it rests, "clear". */
  function changed(what) {
    if (what !== "stroke") penUp = performance.now();
    waiting = what === "end" || waiting === "end" ? "end" : what;
    if (!running) requestAnimationFrame(run);
  }

  async function run() {
    if (running || waiting === null) return;
    running = true;
    const what = waiting;
    const since = what === "stroke" ? null : penUp;
    waiting = null;
    try {
      const found = await source.run(pad.picture());
      page.run = found.run;
      layers.received(found.maps);
      page.best = answer.show(found.probabilities, what === "end");
      if (since !== null) page.latency = performance.now() - since;
      page.ran++;
      if (page.selected) node.open(page.selected, false);
      answer.explain(what === "stroke");
      problem("");
    } catch (error) {
      problem(error.message);
    } finally {
      running = false;
    }
    if (waiting !== null) requestAnimationFrame(run);
  }

  /** The network has new weights: run the picture again. */
  function reload() {
    waiting = waiting ?? "stroke";
    if (!running) requestAnimationFrame(run);
    filters.refresh();
    gpuconv.patches.outdate();
  }

  function problem(words) {
    find("problem").hidden = !words;
    find("problem").textContent = words;
  }

  /** Do something, and show what went wrong. */
  const attempt = (action) => action().then(() => problem(""), (error) => problem(error.message));

  // ---- choosing --------------------------------------------------------------------------------

  /** Open a node, and show where it is unless it is being walked over. */
  function select(chosen, open = true) {
    page.selected = chosen;
    if (open) layers.reveal(chosen);
    else layers.turnTo(chosen);
    layers.paintAll();
    if (!open) layers.announce(chosen);
    attempt(() => node.open(chosen, open));
  }

  function deselect() {
    page.selected = null;
    node.close();
    layers.paintAll();
  }

  // ---- pictures --------------------------------------------------------------------------------

  const showSample = (index) => attempt(async () => {
    const found = await source.sample(index);
    pad.load(found);
    find("sample").value = String(found.index);
    find("picture-words").textContent =
      `test picture ${found.index}, labelled ${page.model.classes[found.label]}`;
  });

  const upload = (file) => attempt(async () => {
    const found = await source.picture(file);
    pad.load(found);
    find("picture-words").textContent = file.name
      + (found.inverted ? ", inverted: its border is light" : "")
      + (found.blank ? ", a picture of one colour: the answer means nothing" : "");
  });

  function listenToPictures() {
    const test = page.model.test;
    find("samples").hidden = test === 0;
    find("sample").max = String(Math.max(0, test - 1));
    find("sample").addEventListener("change", (event) => {
      const index = Math.min(test - 1, Math.max(0, Math.round(Number(event.target.value)) || 0));
      showSample(index);
    });
    find("sample-random").addEventListener("click", () => showSample(Math.floor(Math.random() * test)));
    find("upload").addEventListener("change", (event) => {
      if (event.target.files[0]) upload(event.target.files[0]);
      event.target.value = "";
    });
    const well = find("pad-card");
    well.addEventListener("dragover", (event) => event.preventDefault());
    well.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
    });
  }

  // ---- settings --------------------------------------------------------------------------------

  function listenToSettings() {
    find("scale").addEventListener("change", (event) => {
      page.scale = event.target.value;
      layers.paintAll();
    });
    find("digits").addEventListener("change", (event) => gpuconv.setDigits(event.target.checked));
    find("theme").addEventListener("change", (event) => {
      document.documentElement.dataset.theme = event.target.value;
      recolour();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    find("node-close").addEventListener("click", deselect);
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && page.selected) {
        const { layer } = page.selected;
        deselect();
        document.querySelector(`[data-layer="${layer}"] canvas[tabindex]`)?.focus();
      }
    });
  }

  function recolour() {
    layers.paintAll();
    answer.paint();
    filters.refresh();
    gpuconv.patches.paintAll();
    gpuconv.training.show();
    pad.show();
    if (page.selected) node.open(page.selected, false);
  }

  // ---- the beginning ---------------------------------------------------------------------------

  async function begin() {
    page.model = await source.describe();
    const { model } = page;
    document.title = `${model.title} · gpuconv`;
    find("title").textContent = model.title;
    find("facts").textContent = [
      plural(model.parameters, "parameter"), model.note,
    ].filter(Boolean).join(" · ");
    layers.begin();
    answer.begin();
    pad.begin(model.input, (what) => {
      find("picture-words").textContent = "";
      changed(what);
    });
    node.close();
    listenToPictures();
    listenToSettings();
    gpuconv.training.begin();
    if (model.test) await showSample(0);
    else changed("end");
  }

  window.addEventListener("unhandledrejection", (event) => problem(event.reason?.message ?? "failed"));
  Object.assign(gpuconv, { select, reload, attempt, showSample });
  begin().catch((error) => problem(error.message));
})();
