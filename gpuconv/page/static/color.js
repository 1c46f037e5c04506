// Colours of values: blue below zero, orange above, the paper's own colour at zero. Lightness grows
// evenly away from zero (in OKLab), so that the size shows without any colour vision; blue and
// orange are told apart with every common kind of it.
"use strict";

(() => {
  const STEPS = 255; // on each side of zero
  // OKLCH: lightness, chroma, hue of zero and of the two ends
  const ENDS = {
    light: { zero: [0.975, 0.003, 90], plus: [0.44, 0.145, 48], minus: [0.4, 0.15, 258] },
    dark: { zero: [0.2, 0.008, 260], plus: [0.86, 0.15, 72], minus: [0.8, 0.125, 235] },
  };
  const tables = {};

  const lab = ([lightness, chroma, hue]) => {
    const angle = (hue * Math.PI) / 180;
    return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)];
  };

  /** OKLab to 8-bit sRGB. Source: B. Ottosson, "A perceptual color space", 2020. */
  function srgb([L, a, b]) {
    const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
    return [
      4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
    ].map((c) => {
      const linear = Math.min(1, Math.max(0, c));
      const encoded = linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055;
      return Math.round(255 * encoded);
    });
  }

  /** [r, g, b] for -STEPS..STEPS. */
  function table(theme) {
    if (!tables[theme]) {
      const { zero, plus, minus } = ENDS[theme];
      const from = lab(zero);
      const made = [];
      for (let i = -STEPS; i <= STEPS; i++) {
        const to = lab(i < 0 ? minus : plus);
        const share = Math.abs(i) / STEPS;
        made.push(srgb(from.map((c, k) => c + share * (to[k] - c))));
      }
      tables[theme] = made;
    }
    return tables[theme];
  }

  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    if (chosen === "dark" || chosen === "light") return chosen === "dark";
    return window.matchMedia("(prefers-color-scheme: dark)").matches;
  };

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

  /** Paint rows x columns values, from `offset` on, into a canvas of one pixel each. */
  function bitmap(values, offset, rows, columns, colour, canvas) {
    const target = canvas || document.createElement("canvas");
    target.width = columns;
    target.height = rows;
    const context = target.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      const [r, g, b] = colour(values[offset + i]);
      image.data[4 * i] = r;
      image.data[4 * i + 1] = g;
      image.data[4 * i + 2] = b;
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    return target;
  }

  /** A picture (C, H, W) in gray or colour, one pixel each; at(c, i): 0 to 255. */
  function photo([channels, rows, columns], at) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [columns, rows];
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = at(channels === 3 ? c : 0, i);
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    return canvas;
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

  Object.assign(window.gpuconv, { palette, gray, bitmap, photo, sized, style, css, dark });
})();
