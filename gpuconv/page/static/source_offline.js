// The page's questions answered by the network that is in the page itself.
"use strict";

(() => {
  const { net } = gpuconv;
  // what the export put into the page
  const { model, samples, patches, weights, start } =
    gpuconv.parse(document.getElementById("network").textContent);

  /** The picture as the network reads it: scaled to 0..1, framed with black, normalised. */
  function prepared({ shape: [C, H, W], pixels }) {
    const { size: [rows, columns], mean, std } = model.input;
    const [top, left] = [Math.floor((rows - H) / 2), Math.floor((columns - W) / 2)];
    const x = new Float32Array(C * rows * columns);
    for (let c = 0; c < C; c++) {
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          const [y, z] = [i - top, j - left];
          const inside = y >= 0 && y < H && z >= 0 && z < W;
          const share = Math.fround(inside ? pixels[(c * H + y) * W + z] / 255 : 0);
          x[(c * rows + i) * columns + j] = Math.fround(share - mean[c]) / std[c];
        }
      }
    }
    return x;
  }

  function maps(outputs, layer, first) {
    const { shape, page } = model.layers[layer];
    const values = outputs[layer];
    const plane = values.length / shape[0];
    const finite = values.filter(Number.isFinite);
    const min = finite.length ? finite.reduce((a, b) => Math.min(a, b)) : 0;
    const max = finite.length ? finite.reduce((a, b) => Math.max(a, b)) : 0;
    return { layer, first, min, max, values: values.subarray(first * plane, (first + page) * plane) };
  }

  /** The values of a window, 0 in the padding. */
  function cut(y, shape, window) {
    const there = gpuconv.inside(window, shape);
    return Float32Array.from({ length: window.channels.length * there.length }, (_, i) => {
      const [channel, row, column] = gpuconv.readAt(window, i);
      if (!there[i % there.length]) return 0;
      return y[shape.length === 3 ? gpuconv.ravel([channel, row, column], shape) : column];
    });
  }

  /** The median of a plane's outermost pixels. */
  function borderOf(plane, w) {
    const border = plane.filter((_, i) => i < w || i >= plane.length - w || i % w === 0 || i % w === w - 1).sort();
    return border[Math.floor(border.length / 2)];
  }

  /** A picture of any size, prepared as `gpuconv predict` does. */
  async function fitted(file) {
    const [C, H, W] = model.input.image;
    const { resize, dark_border } = model.input;
    const image = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name}: not a picture that this browser can read`);
    });
    const scales = [W / image.width, H / image.height];
    const scale = resize === "centre-crop" ? Math.max(...scales) : Math.min(...scales);
    const scaled = (side) => Math.max(1, Math.round(side * scale));
    const [w, h] = resize === "fit" ? [scaled(image.width), scaled(image.height)] : [W, H];
    const [sw, sh] = resize === "centre-crop" ? [W / scale, H / scale] : [image.width, image.height];
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, w, h);
    context.imageSmoothingQuality = "high";
    context.drawImage(image, (image.width - sw) / 2, (image.height - sh) / 2, sw, sh, 0, 0, w, h);
    const { data } = context.getImageData(0, 0, w, h);
    const at = (i, c) => (C === 1
      ? Math.round(0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]) : data[4 * i + c]);
    const [top, left] = [Math.floor((H - h) / 2), Math.floor((W - w) / 2)];
    const pixels = new Uint8Array(C * H * W);
    let [around, contrast] = [0, 0]; // around: the mean of the channels' borders
    for (let c = 0; c < C; c++) {
      const plane = Uint8Array.from({ length: h * w }, (_, i) => at(i, c));
      const whole = pixels.subarray(c * H * W, (c + 1) * H * W).fill(borderOf(plane, w));
      for (let i = 0; i < h; i++) whole.set(plane.subarray(i * w, (i + 1) * w), (top + i) * W + left);
      around += borderOf(whole, W) / C;
      contrast = Math.max(contrast, whole.reduce((a, b) => Math.max(a, b)) - whole.reduce((a, b) => Math.min(a, b)));
    }
    const inverted = dark_border && around > 127;
    if (inverted) pixels.forEach((value, i) => { pixels[i] = 255 - value; });
    return { shape: [C, H, W], pixels, inverted, blank: contrast < 8 };
  }

  gpuconv.source = {
    describe: async () => model,

    async run(picture) {
      const run = net.forward(model.layers, weights, prepared(picture)); // by its outputs
      return {
        run, probabilities: [...run.at(-1)],
        maps: model.layers.map((layer) => maps(run, layer.number, 0)),
      };
    },

    maps: async (run, layer, first) => maps(run, layer, first),
    values: async (run, windows) => windows.map((window) =>
      cut(run[window.from], model.layers[window.from].shape, window)),
    weights: async (layer, channel) => Object.fromEntries(Object.entries(weights[layer]).map(([name, array]) => {
      const size = array.length / model.layers[layer].shape[0];
      return [name, array.subarray(channel * size, (channel + 1) * size)];
    })),

    async filters(layer, when) {
      const values = when === "start" ? start[layer] : weights[layer].weight;
      return { shape: model.layers[layer].filters, values };
    },

    async explanation(run, method, target) {
      const values = net.gradient(model, weights, run, target);
      return { shape: [1, ...model.layers[0].shape.slice(1)], values, method };
    },

    patches: async (layer, filter) => patches[layer][filter],
    sample: async (index) => ({ ...samples[index], index }),
    picture: fitted,
  };
})();
