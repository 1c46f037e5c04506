// The drawing pad: mouse, touch, pen or keyboard; a picture of the size that the network reads.
"use strict";

(() => {
  const { element, find, say } = gpuconv;
  const SIDE = 280; // CSS pixels of the pad's longer side
  const BOX = 20 / 28; // MNIST's digits fill a box of 20 of 28 pixels ...
  let paper, ink; // the drawing, `fine` times as fine as the network's picture
  let fine = 1;
  let shape = [1, 28, 28];
  let changed = () => {};
  let base = null; // a loaded picture, under the strokes
  let last = null;
  let erasing = false;
  let papers = []; // as the paper was before each stroke
  const pen = { row: 0, column: 0, down: false, shown: false };

  /** Begin: `input` describes the network's picture, `listener` hears of every change. */
  function begin(input, listener) {
    shape = input.image;
    changed = listener;
    const [, height, width] = shape;
    fine = Math.max(1, Math.floor(SIDE / Math.max(height, width)));
    paper = document.createElement("canvas");
    [paper.width, paper.height] = [width * fine, height * fine];
    ink = paper.getContext("2d", { willReadFrequently: true });
    ink.lineCap = ink.lineJoin = "round";
    ink.imageSmoothingEnabled = false;
    const pad = find("pad");
    [pad.width, pad.height] = [paper.width, paper.height];
    find("center-label").hidden = !(input.dark_border && shape[0] === 1);
    pen.row = Math.floor(height / 2);
    pen.column = Math.floor(width / 2);
    wipe();
    listen(pad);
  }

  /** Black paper, or a picture to draw on. */
  function wipe(picture = null) {
    papers = [];
    base = picture;
    ink.fillStyle = "black";
    ink.fillRect(0, 0, paper.width, paper.height);
    if (base) ink.drawImage(base, 0, 0, paper.width, paper.height);
    show();
  }

  function clear() {
    pen.down = false;
    wipe();
    changed("clear");
    say("The pad is clear.");
  }

  function undo() {
    if (!papers.length) return;
    ink.putImageData(papers.pop(), 0, 0);
    show();
    changed("stroke");
    say("The last stroke is gone.");
  }

  function show() {
    const context = find("pad").getContext("2d");
    context.drawImage(paper, 0, 0);
    find("pad-hint").hidden = papers.length > 0 || !blank();
    if (!pen.shown) return;
    context.strokeStyle = pen.down ? "#ffb454" : "#9ecbff";
    context.lineWidth = 2;
    context.strokeRect(pen.column * fine, pen.row * fine, fine, fine);
  }

  const blank = () => !ink.getImageData(0, 0, paper.width, paper.height).data
    .some((value, i) => i % 4 === 0 && value > 0);

  function begun() {
    last = null;
    papers.push(ink.getImageData(0, 0, paper.width, paper.height));
  }

  /** Draw on to (x, y), in the paper's pixels. */
  function reach(x, y) {
    ink.strokeStyle = erasing ? "black" : "white";
    ink.lineWidth = (Number(find("pen-size").value) * paper.width) / 28;
    ink.beginPath();
    ink.moveTo(...(last || [x, y]));
    ink.lineTo(x, y);
    ink.stroke();
    last = [x, y];
  }

  function listen(pad) {
    const place = (event) => {
      const box = pad.getBoundingClientRect();
      return [
        ((event.clientX - box.left) / box.width) * paper.width,
        ((event.clientY - box.top) / box.height) * paper.height,
      ];
    };
    pad.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      pad.focus({ preventScroll: true });
      pad.setPointerCapture(event.pointerId);
      pen.shown = false;
      begun();
      reach(...place(event));
      show();
      changed("stroke");
    });
    pad.addEventListener("pointermove", (event) => {
      if (!pad.hasPointerCapture(event.pointerId)) return;
      const steps = event.getCoalescedEvents?.() ?? [];
      for (const step of steps.length ? steps : [event]) reach(...place(step));
      show();
      changed("stroke");
    });
    pad.addEventListener("pointerup", (event) => {
      if (pad.hasPointerCapture(event.pointerId)) changed("end");
    });
    pad.addEventListener("keydown", byKey);
    pad.addEventListener("blur", () => { pen.shown = false; show(); });
    find("pad-clear").addEventListener("click", () => clear());
    find("pad-undo").addEventListener("click", undo);
    find("pad-erase").addEventListener("click", (event) => {
      erasing = !erasing;
      event.currentTarget.setAttribute("aria-pressed", String(erasing));
    });
    find("center").addEventListener("change", () => changed("end"));
  }

  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  function byKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = STEPS[event.key];
    if (step) {
      const [, height, width] = shape;
      const size = event.shiftKey ? 4 : 1;
      pen.row = Math.min(height - 1, Math.max(0, pen.row + size * step[0]));
      pen.column = Math.min(width - 1, Math.max(0, pen.column + size * step[1]));
      if (pen.down) dot();
      else say(`row ${pen.row + 1}, column ${pen.column + 1}`);
    } else if (event.key === " " || event.key === "Enter") {
      pen.down = !pen.down;
      if (pen.down) {
        begun();
        dot();
      } else changed("end");
      say(pen.down ? "Pen down." : "Pen up.");
    } else if (event.key === "Delete" || event.key === "Backspace") {
      clear();
    } else if (event.key === "z") {
      undo();
    } else return;
    event.preventDefault();
    pen.shown = true;
    show();
  }

  function dot() {
    reach((pen.column + 0.5) * fine, (pen.row + 0.5) * fine);
    changed("stroke");
  }

  /** The picture for the network: {shape, pixels: Uint8Array (C, H, W)}. */
  function picture() {
    const [channels, height, width] = shape;
    const centred = !base && !find("center-label").hidden && find("center").checked;
    const data = (centred ? middle() : ink).getImageData(0, 0, paper.width, paper.height).data;
    const sums = new Float64Array(channels * height * width);
    for (let y = 0; y < paper.height; y++) {
      for (let x = 0; x < paper.width; x++) {
        const at = Math.floor(y / fine) * width + Math.floor(x / fine);
        for (let c = 0; c < channels; c++) {
          sums[c * height * width + at] += data[4 * (y * paper.width + x) + c];
        }
      }
    }
    return { shape, pixels: Uint8Array.from(sums, (sum) => Math.round(sum / (fine * fine))) };
  }

  /** The drawing as MNIST has its digits: in a box of 20 of 28 pixels, its weight in the middle. */
  function middle() {
    const { width, height } = paper;
    const data = ink.getImageData(0, 0, width, height).data;
    let [top, left, bottom, right, sum, sumX, sumY] = [height, width, -1, -1, 0, 0, 0];
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const value = data[4 * (y * width + x)];
        if (value < 32) continue;
        [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
        [left, right] = [Math.min(left, x), Math.max(right, x)];
        sum += value;
        sumX += value * (x + 0.5);
        sumY += value * (y + 0.5);
      }
    }
    if (!sum) return ink;
    const scale = (BOX * Math.min(width, height)) / Math.max(bottom - top + 1, right - left + 1);
    const canvas = element("canvas", { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.translate(width / 2 - (scale * sumX) / sum, height / 2 - (scale * sumY) / sum);
    context.scale(scale, scale);
    context.drawImage(paper, 0, 0);
    return context;
  }

  /** Put a picture of the network's size on the pad, pixel by pixel. */
  function load(loaded) {
    wipe(gpuconv.photo(loaded.shape, loaded.pixels));
    changed("end");
  }

  Object.assign(gpuconv, { pad: { begin, clear, undo, picture, load, blank, show } });
})();
