// How one value came about: its window, weights, products, sum, bias, maximum and so on, from the
// values and weights that the source gives.
"use strict";

(() => {
  const { page, windows, single, inside } = gpuconv;
  const largest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const total = (values) => Math.fround(values.reduce((a, b) => a + b, 0));

  /** What made element `index` of layer `number`'s output in a run.

      Always there: "layer", "index", "kind", "value". Beside them, by kind:
      - conv, linear: "window" as `windows` gives it, its values "x", 0 in the padding, "inside" for
        each element of a channel, "w", "products", their "sum", "bias" (null without);
      - max_pool: "window", "x", "inside", "winner", its place in the window or null; the other
        pools: "divisor", what the sum is over; response_norm: "center", "a", "beta", "k";
      - layers that read one element: "read", [{layer, index, value}]; add, multiply: two;
        batch_norm: also "mean", "var", "eps", "weight", "bias";
      - softmax: "x", the scores, "exps" = e**(x - largest), and their "sum". */
  async function explain(run, number, index) {
    const { source } = gpuconv;
    const { layers } = page.model;
    const layer = layers[number];
    const read = windows(layers, layer, index);
    const [[[value], ...xs], weights] = await Promise.all([
      source.values(run, [single(number, index), ...read]),
      WEIGHTED.includes(layer.kind) ? source.weights(number, index[0]) : {},
    ]);
    const found = { layer: number, index, kind: layer.kind, value };
    if (!read.length) return found;
    const [window] = read;
    const shape = layers[window.from].shape;
    if (!(layer.kind in KINDS)) return { ...found, read: read.map((at, i) => one(layers, at, xs[i])) };
    const known = { ...found, window, x: xs[0], inside: inside(window, shape) };
    return { ...known, ...KINDS[layer.kind](layer, known, weights, shape) };
  }

  /** One element that was read. */
  const one = (layers, { from, channels: [channel], top, left }, [value]) => ({
    layer: from, index: layers[from].shape.length === 3 ? [channel, top, left] : [left], value,
  });

  function dot(layer, { window: { channels }, x }, { weight, bias }) {
    const taps = x.length / channels.length;
    const begin = layer.links ? 0 : channels[0]; // a filter has weights of its own channels alone
    const w = channels.flatMap((c) => [...weight.subarray((c - begin) * taps, (c - begin + 1) * taps)]);
    const products = w.map((each, i) => Math.fround(x[i] * each));
    return { w, products, sum: total(products), bias: bias?.[0] ?? null };
  }

  function winner(layer, { x, inside: marks }) {
    let best = null;
    x.forEach((value, i) => {
      if (!marks[i]) return;
      if (best === null || value > x[best] || Number.isNaN(value)) best = i;
    });
    return { winner: best };
  }

  const mean = (layer, { index }, weights, shape) =>
    ({ divisor: gpuconv.divisor(layer, shape, index.slice(1)) });

  const batchNorm = ({ eps }, { window, x }, arrays) => ({
    read: [one(page.model.layers, window, x)], eps,
    mean: arrays.running_mean[0], var: arrays.running_var[0],
    weight: arrays.weight?.[0] ?? 1, bias: arrays.bias?.[0] ?? 0,
  });

  const responseNorm = ({ a, beta, k }, { window, index }) =>
    ({ center: index[0] - window.channels[0], a, beta, k });

  function softmax(layer, { x }) {
    const most = largest(x);
    const exps = [...x].map((score) => Math.fround(Math.exp(score - most)));
    return { exps, sum: total(exps) };
  }

  const WEIGHTED = ["conv", "linear", "batch_norm"];
  const KINDS = {
    conv: dot, linear: dot, max_pool: winner, avg_pool: mean, sum_pool: mean,
    adaptive_avg_pool: mean, batch_norm: batchNorm, response_norm: responseNorm, softmax,
  };

  Object.assign(gpuconv, { explain });
})();
