// The forward pass and the gradient of a score, for the page that has the weights inside: float32
// values, each sum of products taken in double precision and rounded once.
"use strict";

(() => {
  const { reach, seen, divisor, neighbours } = gpuconv;
  const size = (shape) => shape.reduce((a, b) => a * b, 1);

  /** Every layer's output for x, the network's input: an array of Float32Array, by number. */
  function forward(layers, weights, x) {
    const outputs = [];
    for (const layer of layers) {
      const given = layer.from.map((from) => outputs[from]);
      const shapes = layer.from.map((from) => layers[from].shape);
      const y = new Float32Array(size(layer.shape));
      if (layer.kind === "input") y.set(x);
      else KINDS[layer.kind][0](layer, given, shapes, y, weights[layer.number]);
      outputs.push(y);
    }
    return outputs;
  }

  /** d(score of class `target`) / d(input), summed over its channels: Float32Array (H, W). */
  function gradient(model, weights, outputs, target) {
    const { layers } = model;
    const gradients = layers.map((layer) => new Float64Array(outputs[layer.number].length));
    gradients[model.scores][target] = 1;
    for (let number = model.scores; number > 0; number--) {
      const layer = layers[number];
      const sources = layer.from.map((from) => ({
        dx: gradients[from], x: outputs[from], shape: layers[from].shape,
      }));
      KINDS[layer.kind][1](layer, gradients[number], sources, outputs[number], weights[number]);
    }
    const [, rows, columns] = layers[0].shape;
    const sums = new Float64Array(rows * columns);
    gradients[0].forEach((value, i) => { sums[i % sums.length] += value; });
    return Float32Array.from(sums);
  }

  // ---- layers with windows -----------------------------------------------------------------------

  const known = new WeakMap(); // the taps of each layer

  /** For each tap of the window, the places of a plane of y and the places of x that it reads for
      them, without those in the padding. */
  function taps(layer, [, H, W]) {
    if (known.has(layer)) return known.get(layer);
    const [, P, Q] = layer.shape;
    const [down, right] = [along(layer, 0, P, H), along(layer, 1, Q, W)];
    const found = down.flatMap((rows) => right.map((columns) => {
      const places = rows.flatMap(([p, i]) => columns.map(([q, j]) => [p * Q + q, i * W + j]));
      return { ys: Int32Array.from(places, ([y]) => y), xs: Int32Array.from(places, ([, x]) => x) };
    }));
    known.set(layer, found);
    return found;
  }

  /** For each tap along an axis, the pairs [place in y, place in x] that it joins. */
  function along(layer, axis, count, length) {
    const found = [];
    for (let at = 0; at < count; at++) {
      const [first, number, step] = reach(layer, axis, at, length);
      for (let tap = 0; tap < number; tap++) {
        const x = first + tap * step;
        found[tap] ??= [];
        if (x >= 0 && x < length) found[tap].push([at, x]);
      }
    }
    return found;
  }

  /** Call each(tap, y, x, w): the tap's places, where the planes begin, and the weight's place. */
  function eachWeight(layer, shape, each) {
    const [K, P, Q] = layer.shape;
    const [, H, W] = shape;
    const all = taps(layer, shape);
    const channels = shape[0] / layer.groups;
    for (let k = 0; k < K; k++) {
      for (const c of seen(layer, shape, k)) {
        const w = (k * channels + (c % channels)) * all.length;
        all.forEach((tap, i) => each(tap, k * P * Q, c * H * W, w + i));
      }
    }
  }

  function conv(layer, [x], [shape], y, { weight, bias }) {
    const sums = new Float64Array(y.length);
    const plane = y.length / layer.shape[0];
    if (bias) bias.forEach((b, k) => sums.fill(b, k * plane, (k + 1) * plane));
    eachWeight(layer, shape, ({ ys, xs }, toY, toX, at) => {
      const w = weight[at];
      for (let i = 0; i < ys.length; i++) sums[toY + ys[i]] += w * x[toX + xs[i]];
    });
    y.set(sums);
  }

  function convBack(layer, dy, [{ dx, shape }], y, { weight }) {
    eachWeight(layer, shape, ({ ys, xs }, toY, toX, at) => {
      const w = weight[at];
      for (let i = 0; i < ys.length; i++) dx[toX + xs[i]] += w * dy[toY + ys[i]];
    });
  }

  /** Call each(place in y, place in x) for every element that a pool's windows read, in order. */
  function eachRead(layer, shape, each) {
    const [C, P, Q] = layer.shape;
    const [, H, W] = shape;
    for (const { ys, xs } of taps(layer, shape)) {
      for (let c = 0; c < C; c++) {
        for (let i = 0; i < ys.length; i++) each(c * P * Q + ys[i], c * H * W + xs[i]);
      }
    }
  }

  /** For each window of a pool its largest element's place, -1 without one; a NaN wins. */
  function winners(layer, x, shape) {
    const found = new Int32Array(size(layer.shape)).fill(-1);
    eachRead(layer, shape, (y, i) => {
      if (found[y] < 0 || x[i] > x[found[y]] || Number.isNaN(x[i])) found[y] = i;
    });
    return found;
  }

  const maxPool = (layer, [x], [shape], y) =>
    winners(layer, x, shape).forEach((i, k) => { y[k] = i < 0 ? -Infinity : x[i]; });

  const maxPoolBack = (layer, dy, [{ dx, x, shape }]) =>
    winners(layer, x, shape).forEach((i, k) => { if (i >= 0) dx[i] += dy[k]; });

  function meanPool(layer, [x], [shape], y) {
    const sums = new Float64Array(y.length);
    eachRead(layer, shape, (k, i) => { sums[k] += x[i]; });
    y.set(divided(layer, shape, sums));
  }

  function meanPoolBack(layer, dy, [{ dx, shape }]) {
    const shares = divided(layer, shape, dy);
    eachRead(layer, shape, (k, i) => { dx[i] += shares[k]; });
  }

  /** Values of y, each divided by what its window's sum is divided by. */
  function divided(layer, shape, values) {
    const [, P, Q] = layer.shape;
    const divisors = Array.from({ length: P * Q }, (_, i) => divisor(layer, shape, [Math.floor(i / Q), i % Q]));
    return values.map((value, k) => value / divisors[k % divisors.length]);
  }

  // ---- the other layers --------------------------------------------------------------------------

  function linear(layer, [x], shapes, y, { weight, bias }) {
    for (let k = 0; k < y.length; k++) {
      let sum = bias ? bias[k] : 0;
      for (let i = 0; i < x.length; i++) sum += weight[k * x.length + i] * x[i];
      y[k] = sum;
    }
  }

  function linearBack(layer, dy, [{ dx }], y, { weight }) {
    dy.forEach((d, k) => {
      for (let i = 0; i < dx.length; i++) dx[i] += weight[k * dx.length + i] * d;
    });
  }

  /** Each channel's scale: its weight over the deviation. */
  const scales = (layer, { weight, running_var: variance }) =>
    Float64Array.from(variance, (v, c) => (weight ? weight[c] : 1) / Math.sqrt(v + layer.eps));

  function batchNorm(layer, [x], [[C]], y, arrays) {
    const { bias, running_mean: mean } = arrays;
    scales(layer, arrays).forEach((scale, c) => {
      for (let i = (c * x.length) / C; i < ((c + 1) * x.length) / C; i++) {
        y[i] = (x[i] - mean[c]) * scale + (bias ? bias[c] : 0);
      }
    });
  }

  function batchNormBack(layer, dy, [{ dx, shape: [C] }], y, arrays) {
    scales(layer, arrays).forEach((scale, c) => {
      for (let i = (c * dx.length) / C; i < ((c + 1) * dx.length) / C; i++) dx[i] += scale * dy[i];
    });
  }

  /** Call each(place, places of the neighbours, k + a * their squares' sum) for every element. */
  function eachNeighbourhood(layer, x, C, each) {
    const plane = x.length / C;
    for (let c = 0; c < C; c++) {
      const steps = neighbours(layer, c, C).map((j) => (j - c) * plane);
      for (let i = c * plane; i < (c + 1) * plane; i++) {
        const around = steps.map((step) => i + step);
        const squares = around.reduce((sum, j) => sum + x[j] ** 2, 0);
        each(i, around, layer.k + layer.a * squares);
      }
    }
  }

  const responseNorm = (layer, [x], [[C]], y) =>
    eachNeighbourhood(layer, x, C, (i, around, d) => { y[i] = x[i] / d ** layer.beta; });

  const responseNormBack = (layer, dy, [{ dx, x, shape: [C] }]) =>
    eachNeighbourhood(layer, x, C, (i, around, d) => {
      dx[i] += dy[i] * d ** -layer.beta;
      const shared = -2 * layer.a * layer.beta * dy[i] * x[i] * d ** (-layer.beta - 1);
      for (const j of around) dx[j] += shared * x[j];
    });

  function softmax(layer, [x], shapes, y) {
    const most = x.reduce((a, b) => Math.max(a, b), -Infinity);
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += y[i] = Math.exp(x[i] - most);
    for (let i = 0; i < x.length; i++) y[i] /= sum;
  }

  function softmaxBack(layer, dy, [{ dx }], y) {
    const mean = dy.reduce((sum, d, i) => sum + d * y[i], 0);
    for (let i = 0; i < dx.length; i++) dx[i] += y[i] * (dy[i] - mean);
  }

  /** Call each(source, where it begins in y): behind each other for a concatenation, else over
      each other, which is a sum, or a copy where there is one. */
  function eachSource({ kind }, sources, each) {
    let at = 0;
    for (const source of sources) {
      each(source, at);
      if (kind === "concat") at += (source.dx ?? source).length;
    }
  }

  const copy = [
    (layer, given, shapes, y) => eachSource(layer, given, (x, at) => {
      for (let i = 0; i < x.length; i++) y[at + i] += x[i];
    }),
    (layer, dy, sources) => eachSource(layer, sources, ({ dx }, at) => {
      for (let i = 0; i < dx.length; i++) dx[i] += dy[at + i];
    }),
  ];

  const product = [
    (layer, [a, b], shapes, y) => { for (let i = 0; i < y.length; i++) y[i] = a[i] * b[i]; },
    (layer, dy, [a, b]) => dy.forEach((d, i) => {
      a.dx[i] += d * b.x[i];
      b.dx[i] += d * a.x[i];
    }),
  ];

  /** y = f(x), and the slope by y. */
  const elementwise = (f, slope) => [
    (layer, [x], shapes, y) => { for (let i = 0; i < x.length; i++) y[i] = f(x[i]); },
    (layer, dy, [{ dx }], y) => { for (let i = 0; i < dx.length; i++) dx[i] += slope(y[i]) * dy[i]; },
  ];

  const KINDS = { // by kind: forward, backward
    conv: [conv, convBack], linear: [linear, linearBack], max_pool: [maxPool, maxPoolBack],
    avg_pool: [meanPool, meanPoolBack], sum_pool: [meanPool, meanPoolBack],
    adaptive_avg_pool: [meanPool, meanPoolBack], batch_norm: [batchNorm, batchNormBack],
    response_norm: [responseNorm, responseNormBack], softmax: [softmax, softmaxBack],
    relu: elementwise((x) => (x > 0 || Number.isNaN(x) ? x : 0), (y) => (y > 0 ? 1 : 0)),
    tanh: elementwise(Math.tanh, (y) => 1 - y * y),
    scaled_tanh: elementwise((x) => 1.7159 * Math.tanh((2 / 3) * x),
      (y) => (2 / 3) * (1.7159 - (y * y) / 1.7159)),
    sigmoid: elementwise((x) => 1 / (1 + Math.exp(-x)), (y) => y * (1 - y)),
    dropout: copy, identity: copy, flatten: copy, add: copy, concat: copy, multiply: product,
  };

  Object.assign(gpuconv, { net: { forward, gradient } });
})();
