// The run in progress: its state and commands, curves, confusion matrix and worst mistakes.
"use strict";

(() => {
  const { element, find, page, text, percent, say, plural } = gpuconv;
  const WORDS = {
    ready: "Not started", starting: "Starting", running: "Running", paused: "Paused",
    stopping: "Stopping after this batch", stopped: "Stopped and saved", done: "Finished",
    failed: "Failed", lost: "The connection to the run is lost",
  };
  let run = { state: "ready", points: [], epochs: [], progress: {}, evaluation: {} };

  const BUTTONS = { // the states in which each is there
    start: ["ready", "stopped"], pause: ["running"], resume: ["paused"], stop: ["running", "paused"],
  };

  /** Begin where the source has a run. */
  function begin() {
    if (!page.model.training) return;
    find("training").hidden = false;
    const rate = find("rate");
    const set = () => command("rate", { rate: Number(rate.value) });
    rate.addEventListener("keydown", (event) => { if (event.key === "Enter") set(); });
    find("rate-set").addEventListener("click", set);
    for (const action in BUTTONS) find(`run-${action}`).addEventListener("click", () => command(action));
    new ResizeObserver(soon).observe(find("training"));
    listen();
  }

  const command = (action, given) => gpuconv.attempt(() => gpuconv.source.command(action, given));

  function listen() {
    const events = gpuconv.source.events();
    events.onopen = async () => {
      run = await gpuconv.source.training();
      show();
      gpuconv.reload();
    };
    events.onerror = () => { run.state = "lost"; showState(); };
    events.onmessage = ({ data }) => {
      const { event, record, ...news } = gpuconv.parse(data);
      Object.assign(run, news);
      heard[event](record);
    };
  }

  const heard = {
    state: () => { showState(); say(`Training: ${WORDS[run.state]}.`); },
    progress: () => {
      if (!(run.progress.step <= run.points.at(-1)?.step)) run.points.push(run.progress);
      soon();
    },
    epoch: (record) => { run.epochs.push(record); soon(); },
    evaluation: () => showEvaluation(),
    weights: () => gpuconv.reload(),
  };

  let drawing = false;
  /** Draw the curves with the next frame, however many points have come. */
  function soon() {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => { drawing = false; showProgress(); });
  }

  function show() {
    showState();
    showProgress();
    showEvaluation();
  }

  function showState() {
    const { state } = run;
    find("run-state").textContent = WORDS[state] + (state === "failed" ? `: ${run.problem}` : "");
    find("run-state").dataset.state = state;
    for (const action in BUTTONS) find(`run-${action}`).hidden = !BUTTONS[action].includes(state);
    find("run-start").textContent = state === "stopped" ? "Go on" : "Start";
    find("rate-set").disabled = !["running", "paused"].includes(state);
  }

  function showProgress() {
    const { progress, points } = run;
    if (progress.step !== undefined) {
      const total = progress.epochs * progress.batches;
      find("run-progress").value = progress.step / total;
      const rate = find("rate");
      if (document.activeElement !== rate) rate.value = Number(progress.lr.toPrecision(4));
      const facts = {
        epoch: `${Math.min(progress.epochs, Math.floor(progress.epoch) + 1)} of ${progress.epochs}`,
        step: `${progress.step.toLocaleString("en")} of ${total.toLocaleString("en")}`,
        loss: text(progress.loss), accuracy: percent(progress.accuracy),
        "learning rate": text(progress.lr),
        speed: `${Math.round(progress.images_per_second).toLocaleString("en")} images/s`,
      };
      find("run-facts").replaceChildren(...Object.entries(facts).map(([fact, value]) =>
        element("div", {}, element("dt", {}, fact), element("dd", {}, value))));
    }
    const checks = (name) => run.epochs.filter((one) => `validation_${name}` in one)
      .map((one) => [one.epoch, one[`validation_${name}`]]);
    curve("loss-chart", "Loss", points.map((p) => [p.epoch, p.loss]), checks("loss"), text);
    curve("accuracy-chart", "Accuracy", points.map((p) => [p.epoch, p.accuracy]), checks("accuracy"), percent);
  }

  /** A curve over the epochs: the training's as a line, held-out pictures' as marked points. */
  function curve(id, name, points, checks, words) {
    const canvas = find(id);
    const [width, height] = [Math.max(180, canvas.parentElement.clientWidth), 150];
    const context = gpuconv.sized(canvas, width, height);
    const checked = checks.length ? `, on held-out pictures ${words(checks.at(-1)[1])}` : "";
    find(`${id}-words`).textContent = points.length ? `${name}: ${words(points.at(-1)[1])}${checked}` : name;
    const [line, marks] = [points, checks].map((all) => all.filter(([, y]) => Number.isFinite(y)));
    const [left, right, top, bottom] = [40, width - 8, 8, height - 20];
    const far = Math.max(run.progress.epochs ?? 1, 1);
    let [low, high] = [0, 1];
    const values = [...line, ...marks].map(([, y]) => y).sort((a, b) => a - b);
    if (values.length) {
      const most = values[Math.floor(values.length * 0.98)]; // a few wild ones may lie outside
      const least = values[Math.floor(values.length * 0.02)];
      if (name === "Loss") high = Math.max(most * 1.1, 1e-6);
      else low = [0.97, 0.94, 0.85, 0.7, 0.4].find((round) => round <= least) ?? 0;
    }
    const x = (epoch) => left + ((right - left) * epoch) / far;
    const y = (value) => bottom - ((bottom - top) * (Math.min(high, Math.max(low, value)) - low)) / (high - low);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    for (let i = 0; i <= 3; i++) {
      const value = low + ((high - low) * i) / 3;
      context.fillStyle = gpuconv.style("--line");
      context.fillRect(left, Math.round(y(value)), right - left, 1);
      context.fillStyle = gpuconv.style("--faint");
      context.fillText(name === "Loss" ? value.toPrecision(2) : `${Math.round(100 * value)} %`, left - 5, y(value) + 4);
    }
    context.textAlign = "center";
    const step = Math.ceil(far / 6);
    for (let epoch = 0; epoch <= far; epoch += step) context.fillText(String(epoch), x(epoch), height - 5);
    context.strokeStyle = gpuconv.style("--blue");
    context.lineWidth = 1.5;
    context.beginPath();
    line.forEach(([epoch, value], i) => context[i ? "lineTo" : "moveTo"](x(epoch), y(value)));
    context.stroke();
    context.strokeStyle = context.fillStyle = gpuconv.style("--bar");
    for (const [epoch, value] of marks) context.fillRect(x(epoch) - 4, y(value) - 4, 8, 8);
  }

  // ---- what is taken for what ------------------------------------------------------------------

  function showEvaluation() {
    const { evaluation } = run;
    if (!evaluation.confusion) return;
    const right = evaluation.confusion.reduce((sum, row, k) => sum + row[k], 0);
    find("confusion-words").textContent =
      `${right.toLocaleString("en")} of ${evaluation.images.toLocaleString("en")} ${run.evaluated_on ?? "pictures"} right; rows are the truth, columns the answer`;
    showConfusion(evaluation.confusion);
    find("mistakes").replaceChildren(...evaluation.mistakes.map(mistake));
  }

  /** The counts, right answers in blue and mistakes in orange, by their share of the row. */
  function showConfusion(counts) {
    const { classes } = page.model;
    const many = classes.length > 12; // then squares without numbers, or full names
    const short = many ? classes : classes.map((name) => name.slice(0, 3));
    const colour = gpuconv.palette(1);
    const rows = counts.map((row, i) => {
      const total = row.reduce((a, b) => a + b, 0) || 1;
      return element("tr", {}, element("th", { scope: "row", title: classes[i] }, short[i]), ...row.map((count, j) => {
        const share = Math.sqrt(count / total) * (i === j ? -1 : 1);
        const cell = element("td", {
          class: count > 0 && (Math.abs(share) > 0.55 ? "most" : "some"),
          title: `${plural(count, "picture")} of ${classes[i]} taken for ${classes[j]}`,
        }, String(count));
        cell.style.background = gpuconv.css(colour(share));
        return cell;
      }));
    });
    find("confusion").parentElement.classList.toggle("many", many);
    find("confusion").replaceChildren(gpuconv.table("what is taken for what", ["", ...short], rows));
  }

  function mistake(found) {
    const { classes } = page.model;
    const canvas = gpuconv.photo(found.shape, found.pixels);
    canvas.setAttribute("aria-hidden", "true");
    const words = `${classes[found.label]} taken for ${classes[found.answer]}`;
    return element("li", {}, element("button", {
      type: "button", "aria-label": `${words}, ${percent(found.sure)} sure; look at it`,
      click: () => gpuconv.pad.load(found),
    }, canvas, element("span", {}, words), element("small", {}, percent(found.sure))));
  }

  Object.assign(gpuconv, { training: { begin, show: () => page.model.training && show(), step: () => run.progress.step ?? 0 } });
})();
