// Colours of values: blue below zero, orange above, the paper's own colour at zero. Lightness grows
// evenly away from zero (in OKLab), so that the size shows without any colour vision; blue and
// orange are told apart with every common kind of it.
"use strict";

(() => {
  const STEPS = 255; // on each side of zero
  // lightness, chroma, hue of zero and of the two ends
  const ENDS = {
    light: { zero: "0.975 0.003 90", plus: "0.44 0.145 48", minus: "0.4 0.15 258" },
    dark: { zero: "0.2 0.008 260", plus: "0.86 0.15 72", minus: "0.8 0.125 235" },
  };
  const tables = {};

  /** [r, g, b] for -STEPS..STEPS, as the browser mixes the colours. */
  function table(theme) {
    if (!tables[theme]) {
      const { zero, plus, minus } = ENDS[theme];
      const context = gpuconv.element("canvas", { width: 2 * STEPS + 1, height: 1 }).getContext("2d");
      for (let i = -STEPS; i <= STEPS; i++) {
        const share = (100 * Math.abs(i)) / STEPS;
        context.fillStyle = `color-mix(in oklab, oklch(${i < 0 ? minus : plus}) ${share}%, oklch(${zero}))`;
        context.fillRect(i + STEPS, 0, 1, 1);
      }
      const { data } = context.getImageData(0, 0, 2 * STEPS + 1, 1);
      tables[theme] = Array.from({ length: 2 * STEPS + 1 }, (_, i) => [...data.subarray(4 * i, 4 * i + 3)]);
    }
    return tables[theme];
  }

  const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark";

  /** A function from a value to [r, g, b], for values up to `most` in size. */
  function palette(most) {
    const rgb = table(dark() ? "dark" : "light");
    return (value) => {
      const share = most > 0 ? value / most : Math.sign(value);
      if (Number.isNaN(share)) return [255, 0, 255];
      return rgb[Math.round(STEPS * Math.min(1, Math.max(-1, share))) + STEPS];
    };
  }

  /** Gray from black at `least` to white at `most`, for pictures. */
  function gray(least, most) {
    const scale = most > least ? 255 / (most - least) : 0;
    return (value) => {
      const step = Math.round(Math.min(255, Math.max(0, (value - least) * scale)));
      return [step, step, step];
    };
  }

  /** A canvas of one pixel each; at(i): [r, g, b]. canvas: one to paint into. */
  function painted(rows, columns, at, canvas = document.createElement("canvas")) {
    [canvas.width, canvas.height] = [columns, rows];
    const image = new ImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      const [r, g, b] = at(i);
      image.data[4 * i] = r;
      image.data[4 * i + 1] = g;
      image.data[4 * i + 2] = b;
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  /** rows x columns values in their colours. */
  const bitmap = (values, rows, columns, colour, canvas) =>
    painted(rows, columns, (i) => colour(values[i]), canvas);

  /** A picture (C, H, W) in gray or colour, black at `low` and white at `high`. */
  function photo([channels, rows, columns], values, low = 0, high = 255) {
    const shade = gray(low, high);
    return painted(rows, columns, (i) =>
      [0, 1, 2].map((c) => shade(values[(c % channels) * rows * columns + i])[0]));
  }

  /** Draw a bitmap into a canvas whose longer side has `side` CSS pixels. */
  function enlarge(bitmap, side, canvas = gpuconv.element("canvas", { "aria-hidden": "true" })) {
    const scale = side / Math.max(bitmap.width, bitmap.height);
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    sized(canvas, width, height).drawImage(bitmap, 0, 0, width, height);
    return canvas;
  }

  /** Draw values as squares of `cell` CSS pixels, row by row. */
  function squares(context, values, columns, cell, colour) {
    const side = cell > 4 ? cell - 1 : cell;
    values.forEach((value, i) => {
      context.fillStyle = css(colour(value));
      context.fillRect((i % columns) * cell, Math.floor(i / columns) * cell, side, side);
    });
  }

  /** Which of `count` squares is at the pointer; -1 for none. */
  function squareAt(canvas, event, count, columns, cell) {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / cell);
    const i = Math.floor((event.clientY - box.top) / cell) * columns + column;
    return column >= 0 && column < columns && i >= 0 && i < count ? i : -1;
  }

  /** Which colour is which value, on a canvas and in words. */
  function legend(canvas, words, low, high, colour) {
    const context = sized(canvas, 72, 8);
    for (let x = 0; x < 72; x++) {
      context.fillStyle = css(colour(low + ((high - low) * x) / 71));
      context.fillRect(x, 0, 1.5, 8);
    }
    words.textContent = `${gpuconv.text(low)} to ${gpuconv.text(high)}`;
  }

  /** Give a canvas its size in CSS pixels, sharp on this screen; its context, cleared. */
  function sized(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.imageSmoothingEnabled = false;
    return context;
  }

  /** A colour of the style sheet, by its name. */
  const style = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const css = ([r, g, b]) => `rgb(${r},${g},${b})`;

  Object.assign(gpuconv, {
    palette, gray, bitmap, photo, enlarge, squares, squareAt, legend, sized, style, css, dark,
  });
})();
