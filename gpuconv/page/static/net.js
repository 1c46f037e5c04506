// The forward pass, for the page that has the weights inside: float32 values, each sum of products
// taken in double precision and rounded once.
"use strict";
window.gpuconv = window.gpuconv || {};

(() => {
  const size = (shape) => shape.reduce((a, b) => a * b, 1);

  /** Every layer's output for x, the network's input: an array of Float32Array, by number. */
  function forward(layers, weights, x) {
    const outputs = [];
    for (const layer of layers) {
      const given = layer.from.map((from) => outputs[from]);
      const shapes = layer.from.map((from) => layers[from].shape);
      const y = new Float32Array(size(layer.shape));
      if (layer.kind === "input") y.set(x);
      else KINDS[layer.kind](layer, given, shapes, y, weights[layer.number]);
      outputs.push(y);
    }
    return outputs;
  }

  function conv(layer, [x], [[C, H, W]], y, { weight, bias }) {
    const [K, P, Q] = layer.shape;
    const [R, S] = layer.kernel;
    const each = C / layer.groups;
    const sums = new Float64Array(P * Q);
    for (let k = 0; k < K; k++) {
      sums.fill(bias ? bias[k] : 0);
      const begin = Math.floor(k / (K / layer.groups)) * each;
      for (let c = 0; c < each; c++) {
        if (layer.links && !layer.links[k].includes(c)) continue;
        for (let r = 0; r < R; r++) {
          for (let s = 0; s < S; s++) {
            const w = weight[((k * each + c) * R + r) * S + s];
            add(layer, sums, x, (begin + c) * H * W, H, W, P, Q, r, s, w);
          }
        }
      }
      y.set(sums, k * P * Q);
    }
  }

  /** Add w times the pixels that tap (r, s) reads to all sums of one plane. */
  function add(layer, sums, x, offset, H, W, P, Q, r, s, w) {
    const [strideY, strideX] = layer.stride;
    const top = r * layer.dilation[0] - layer.pads[0][0];
    const left = s * layer.dilation[1] - layer.pads[1][0];
    for (let p = 0; p < P; p++) {
      const i = p * strideY + top;
      if (i < 0 || i >= H) continue;
      for (let q = 0; q < Q; q++) {
        const j = q * strideX + left;
        if (j >= 0 && j < W) sums[p * Q + q] += w * x[offset + i * W + j];
      }
    }
  }

  function linear(layer, [x], shapes, y, { weight, bias }) {
    const n = x.length;
    for (let k = 0; k < y.length; k++) {
      let sum = bias ? bias[k] : 0;
      for (let i = 0; i < n; i++) sum += weight[k * n + i] * x[i];
      y[k] = sum;
    }
  }

  /** Call each(channel, p, q, taps): taps lists [place in x, place in the window], in order. */
  function windows(layer, [C, H, W], each) {
    const [, P, Q] = layer.shape;
    const [R, S] = layer.kernel;
    for (let c = 0; c < C; c++) {
      for (let p = 0; p < P; p++) {
        for (let q = 0; q < Q; q++) {
          const taps = [];
          for (let r = 0; r < R; r++) {
            const i = p * layer.stride[0] - layer.pads[0][0] + r * layer.dilation[0];
            if (i < 0 || i >= H) continue;
            for (let s = 0; s < S; s++) {
              const j = q * layer.stride[1] - layer.pads[1][0] + s * layer.dilation[1];
              if (j >= 0 && j < W) taps.push([(c * H + i) * W + j, r * S + s]);
            }
          }
          each(c, p, q, taps);
        }
      }
    }
  }

  function maxPool(layer, [x], [shape], y) {
    const [, P, Q] = layer.shape;
    windows(layer, shape, (c, p, q, taps) => {
      let most = -Infinity;
      for (const [i] of taps) if (x[i] > most || Number.isNaN(x[i])) most = x[i];
      y[(c * P + p) * Q + q] = most;
    });
  }

  function sumPool(layer, [x], [shape], y) {
    const [, P, Q] = layer.shape;
    windows(layer, shape, (c, p, q, taps) => {
      const sum = taps.reduce((total, [i]) => total + x[i], 0);
      y[(c * P + p) * Q + q] = sum / divisor(layer, shape, p, q);
    });
  }

  /** What a window's sum is divided by: 1 for sum-pooling, else the taps that count. */
  function divisor(layer, [, H, W], p, q) {
    if (layer.kind === "sum_pool") return 1;
    const counted = [[p, H], [q, W]].map(([at, length], axis) => {
      const [before, after] = layer.count_include_pad ? layer.pads[axis] : [0, 0];
      let count = 0;
      for (let tap = 0; tap < layer.kernel[axis]; tap++) {
        const i = at * layer.stride[axis] - layer.pads[axis][0] + tap * layer.dilation[axis];
        if (i >= -before && i < length + after) count++;
      }
      return count;
    });
    return Math.max(1, counted[0] * counted[1]);
  }

  /** [begin, end) of part p of P of H rows. */
  const part = (p, P, H) => [Math.floor((p * H) / P), Math.ceil(((p + 1) * H) / P)];

  function adaptive(layer, [x], [[C, H, W]], y) {
    const [, P, Q] = layer.shape;
    for (let c = 0; c < C; c++) {
      for (let p = 0; p < P; p++) {
        const [top, bottom] = part(p, P, H);
        for (let q = 0; q < Q; q++) {
          const [left, right] = part(q, Q, W);
          let sum = 0;
          for (let i = top; i < bottom; i++) {
            for (let j = left; j < right; j++) sum += x[(c * H + i) * W + j];
          }
          y[(c * P + p) * Q + q] = sum / ((bottom - top) * (right - left));
        }
      }
    }
  }

  function batchNorm(layer, [x], [[C]], y, { weight, bias, mean, var: variance }) {
    const plane = x.length / C;
    for (let c = 0; c < C; c++) {
      const scale = (weight ? weight[c] : 1) / Math.sqrt(variance[c] + layer.eps);
      for (let i = c * plane; i < (c + 1) * plane; i++) {
        y[i] = (x[i] - mean[c]) * scale + (bias ? bias[c] : 0);
      }
    }
  }

  function responseNorm(layer, [x], [[C]], y) {
    const plane = x.length / C;
    for (let c = 0; c < C; c++) {
      const first = Math.max(0, c - Math.floor(layer.size / 2));
      const last = Math.min(C - 1, c + Math.floor((layer.size - 1) / 2));
      for (let i = 0; i < plane; i++) {
        let squares = 0;
        for (let j = first; j <= last; j++) squares += x[j * plane + i] ** 2;
        y[c * plane + i] = x[c * plane + i] / (layer.k + layer.a * squares) ** layer.beta;
      }
    }
  }

  function softmax(layer, [x], shapes, y) {
    const most = x.reduce((a, b) => Math.max(a, b), -Infinity);
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += y[i] = Math.exp(x[i] - most);
    for (let i = 0; i < x.length; i++) y[i] /= sum;
  }

  const elementwise = (f) => (layer, [x], shapes, y) => {
    for (let i = 0; i < x.length; i++) y[i] = f(x[i]);
  };
  const copy = elementwise((x) => x);

  function sum(layer, [a, b], shapes, y) {
    for (let i = 0; i < y.length; i++) y[i] = a[i] + b[i];
  }

  function concat(layer, given, shapes, y) {
    let at = 0;
    for (const x of given) { y.set(x, at); at += x.length; }
  }

  const KINDS = {
    conv, linear, max_pool: maxPool, avg_pool: sumPool, sum_pool: sumPool,
    adaptive_avg_pool: adaptive, batch_norm: batchNorm, response_norm: responseNorm, softmax,
    relu: elementwise((x) => (x > 0 || Number.isNaN(x) ? x : 0)), tanh: elementwise(Math.tanh),
    scaled_tanh: elementwise((x) => 1.7159 * Math.tanh((2 / 3) * x)),
    sigmoid: elementwise((x) => 1 / (1 + Math.exp(-x))),
    dropout: copy, identity: copy, flatten: copy, add: sum, concat,
  };

  Object.assign(window.gpuconv, { net: { forward, windows, divisor, part, add } });
})();
