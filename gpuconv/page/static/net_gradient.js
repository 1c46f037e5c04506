// The gradient of one class's score with respect to the picture, for the page with the weights
// inside: each layer's backward pass, without those of its weights.
"use strict";

(() => {
  const { windows, divisor, part } = gpuconv.net;

  /** d(score of class `target`) / d(input): Float32Array of the input's size. */
  function saliency(model, weights, outputs, target) {
    const { layers } = model;
    const gradients = layers.map((layer) => new Float64Array(outputs[layer.number].length));
    gradients[model.scores][target] = 1;
    for (let number = model.scores; number > 0; number--) {
      const layer = layers[number];
      const sources = layer.from.map((from) => ({
        dx: gradients[from], x: outputs[from], shape: layers[from].shape,
      }));
      KINDS[layer.kind](layer, gradients[number], sources, outputs[number], weights[number]);
    }
    return Float32Array.from(gradients[0]);
  }

  function conv(layer, dy, [{ dx, shape: [C, H, W] }], y, { weight }) {
    const [K, P, Q] = layer.shape;
    const [R, S] = layer.kernel;
    const each = C / layer.groups;
    for (let k = 0; k < K; k++) {
      const begin = Math.floor(k / (K / layer.groups)) * each;
      for (let c = 0; c < each; c++) {
        for (let r = 0; r < R; r++) {
          for (let s = 0; s < S; s++) {
            const w = weight[((k * each + c) * R + r) * S + s];
            if (w === 0) continue;
            for (let p = 0; p < P; p++) {
              const i = p * layer.stride[0] - layer.pads[0][0] + r * layer.dilation[0];
              if (i < 0 || i >= H) continue;
              for (let q = 0; q < Q; q++) {
                const j = q * layer.stride[1] - layer.pads[1][0] + s * layer.dilation[1];
                if (j >= 0 && j < W) dx[((begin + c) * H + i) * W + j] += w * dy[(k * P + p) * Q + q];
              }
            }
          }
        }
      }
    }
  }

  function linear(layer, dy, [{ dx }], y, { weight }) {
    for (let k = 0; k < dy.length; k++) {
      if (dy[k] === 0) continue;
      for (let i = 0; i < dx.length; i++) dx[i] += weight[k * dx.length + i] * dy[k];
    }
  }

  function maxPool(layer, dy, [{ dx, x, shape }]) {
    const [, P, Q] = layer.shape;
    windows(layer, shape, (c, p, q, taps) => {
      let winner = -1;
      for (const [i] of taps) if (winner < 0 || x[i] > x[winner] || Number.isNaN(x[i])) winner = i;
      if (winner >= 0) dx[winner] += dy[(c * P + p) * Q + q];
    });
  }

  function sumPool(layer, dy, [{ dx, shape }]) {
    const [, P, Q] = layer.shape;
    windows(layer, shape, (c, p, q, taps) => {
      const share = dy[(c * P + p) * Q + q] / divisor(layer, shape, p, q);
      for (const [i] of taps) dx[i] += share;
    });
  }

  function adaptive(layer, dy, [{ dx, shape: [C, H, W] }]) {
    const [, P, Q] = layer.shape;
    for (let c = 0; c < C; c++) {
      for (let p = 0; p < P; p++) {
        const [top, bottom] = part(p, P, H);
        for (let q = 0; q < Q; q++) {
          const [left, right] = part(q, Q, W);
          const share = dy[(c * P + p) * Q + q] / ((bottom - top) * (right - left));
          for (let i = top; i < bottom; i++) {
            for (let j = left; j < right; j++) dx[(c * H + i) * W + j] += share;
          }
        }
      }
    }
  }

  function batchNorm(layer, dy, [{ dx, shape: [C] }], y, { weight, var: variance }) {
    const plane = dx.length / C;
    for (let c = 0; c < C; c++) {
      const scale = (weight ? weight[c] : 1) / Math.sqrt(variance[c] + layer.eps);
      for (let i = c * plane; i < (c + 1) * plane; i++) dx[i] += scale * dy[i];
    }
  }

  function responseNorm(layer, dy, [{ dx, x, shape: [C] }]) {
    const plane = dx.length / C;
    const [below, above] = [Math.floor(layer.size / 2), Math.floor((layer.size - 1) / 2)];
    for (let i = 0; i < plane; i++) {
      for (let c = 0; c < C; c++) {
        let squares = 0;
        const last = Math.min(C - 1, c + above);
        for (let j = Math.max(0, c - below); j <= last; j++) squares += x[j * plane + i] ** 2;
        const d = layer.k + layer.a * squares;
        const given = dy[c * plane + i];
        dx[c * plane + i] += given * d ** -layer.beta;
        const around = -2 * layer.a * layer.beta * given * x[c * plane + i] * d ** (-layer.beta - 1);
        for (let j = Math.max(0, c - below); j <= last; j++) dx[j * plane + i] += around * x[j * plane + i];
      }
    }
  }

  const elementwise = (slope) => (layer, dy, [{ dx }], y) => {
    for (let i = 0; i < dx.length; i++) dx[i] += slope(y[i]) * dy[i];
  };
  const copy = elementwise(() => 1);

  function add(layer, dy, sources) {
    for (const { dx } of sources) for (let i = 0; i < dx.length; i++) dx[i] += dy[i];
  }

  function concat(layer, dy, sources) {
    let at = 0;
    for (const { dx } of sources) {
      for (let i = 0; i < dx.length; i++) dx[i] += dy[at + i];
      at += dx.length;
    }
  }

  function softmax(layer, dy, [{ dx }], y) {
    const mean = dy.reduce((sum, d, i) => sum + d * y[i], 0);
    for (let i = 0; i < dx.length; i++) dx[i] += y[i] * (dy[i] - mean);
  }

  const KINDS = {
    conv, linear, max_pool: maxPool, avg_pool: sumPool, sum_pool: sumPool,
    adaptive_avg_pool: adaptive, batch_norm: batchNorm, response_norm: responseNorm, softmax,
    relu: elementwise((y) => (y > 0 ? 1 : 0)), tanh: elementwise((y) => 1 - y * y),
    scaled_tanh: elementwise((y) => (2 / 3) * (1.7159 - (y * y) / 1.7159)),
    sigmoid: elementwise((y) => y * (1 - y)), dropout: copy, identity: copy, flatten: copy, add, concat,
  };

  Object.assign(window.gpuconv.net, { saliency });
})();
