// How one value came about, for the page with the weights inside: what gpuconv/page/nodes.py says,
// key for key.
"use strict";

(() => {
  const { ravel, unravel, windows } = gpuconv;

  /** What made element `index` of layer `number`'s output. */
  function explain(layers, weights, outputs, number, index) {
    const layer = layers[number];
    const given = layer.from.map((from) => outputs[from]);
    const found = {
      layer: number, index, kind: layer.kind, value: outputs[number][ravel(index, layer.shape)],
    };
    const parts = KINDS[layer.kind];
    return parts ? { ...found, ...parts(layers, layer, given, index, weights[number]) } : found;
  }

  /** The window's place, and its values channel by channel: 0 in the padding. */
  function cut(layers, layer, x, index) {
    const [place] = windows(layers, layer, index);
    const [, H, W] = layers[place.from].shape;
    const values = [];
    place.inside = [];
    for (const channel of place.channels) {
      for (let r = 0; r < place.rows; r++) {
        for (let s = 0; s < place.columns; s++) {
          const i = place.top + r * place.dilation[0];
          const j = place.left + s * place.dilation[1];
          const inside = i >= 0 && i < H && j >= 0 && j < W;
          values.push(inside ? x[(channel * H + i) * W + j] : 0);
          if (place.inside.length < place.rows * place.columns) place.inside.push(inside);
        }
      }
    }
    return { window: place, x: values };
  }

  function dot(x, w, bias) {
    const products = x.map((value, i) => Math.fround(value * w[i]));
    return {
      w: [...w], products, sum: Math.fround(products.reduce((a, b) => a + b, 0)),
      bias: bias ?? null,
    };
  }

  function conv(layers, layer, [x], index, { weight, bias }) {
    const found = cut(layers, layer, x, index);
    const [k] = index;
    const each = layer.filters[1];
    const taps = layer.kernel[0] * layer.kernel[1];
    const begin = layer.links ? 0 : found.window.channels[0];
    const w = found.window.channels.flatMap((channel) => {
      const at = (k * each + channel - begin) * taps;
      return [...weight.subarray(at, at + taps)];
    });
    return { ...found, ...dot(found.x, w, bias?.[k]) };
  }

  function linear(layers, layer, [x], [k], { weight, bias }) {
    const w = weight.subarray(k * x.length, (k + 1) * x.length);
    return { window: { from: layer.from[0] }, x: [...x], ...dot([...x], w, bias?.[k]) };
  }

  function maxPool(layers, layer, [x], index) {
    const found = cut(layers, layer, x, index);
    let winner = null;
    found.x.forEach((value, i) => {
      if (!found.window.inside[i]) return;
      if (winner === null || value > found.x[winner] || Number.isNaN(value)) winner = i;
    });
    return { ...found, winner };
  }

  const sumPool = (layers, layer, [x], index) => ({
    ...cut(layers, layer, x, index),
    divisor: gpuconv.net.divisor(layer, layers[layer.from[0]].shape, index[1], index[2]),
  });

  function adaptive(layers, layer, [x], index) {
    const found = cut(layers, layer, x, index);
    return { ...found, divisor: found.x.length };
  }

  const element = (layers, layer, [x], index) => ({
    from: layer.from[0], at: index, x: x[ravel(index, layer.shape)],
  });

  function flatten(layers, layer, [x], [i]) {
    return { from: layer.from[0], at: unravel(i, layers[layer.from[0]].shape), x: x[i] };
  }

  function concat(layers, layer, given, index) {
    const [{ from, channels: [channel] }] = windows(layers, layer, index);
    const at = [channel, ...index.slice(1)];
    return { from, at, x: given[layer.from.indexOf(from)][ravel(at, layers[from].shape)] };
  }

  const add = (layers, layer, given, index) => ({
    from: layer.from, at: index, x: given.map((x) => x[ravel(index, layer.shape)]),
  });

  function batchNorm(layers, layer, given, index, { weight, bias, mean, var: variance }) {
    const [c] = index;
    return {
      ...element(layers, layer, given, index), mean: mean[c], var: variance[c], eps: layer.eps,
      weight: weight ? weight[c] : 1, bias: bias ? bias[c] : 0,
    };
  }

  function responseNorm(layers, layer, [x], index) {
    const found = cut(layers, layer, x, index);
    const { a, beta, k } = layer;
    return { ...found, center: index[0] - found.window.channels[0], a, beta, k };
  }

  function softmax(layers, layer, [x], index) {
    if (layer.shape.length !== 1) return element(layers, layer, [x], index);
    const most = x.reduce((a, b) => Math.max(a, b), -Infinity);
    const exps = [...x].map((value) => Math.fround(Math.exp(value - most)));
    const sum = Math.fround(exps.reduce((a, b) => a + b, 0));
    return { window: { from: layer.from[0] }, x: [...x], exps, sum };
  }

  const KINDS = {
    conv, linear, max_pool: maxPool, avg_pool: sumPool, sum_pool: sumPool,
    adaptive_avg_pool: adaptive, batch_norm: batchNorm, response_norm: responseNorm, softmax,
    relu: element, tanh: element, scaled_tanh: element, sigmoid: element, dropout: element,
    identity: element, flatten, concat, add,
  };

  Object.assign(window.gpuconv.net, { explain });
})();
