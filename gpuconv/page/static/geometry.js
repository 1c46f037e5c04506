// Where a node looks: the window it reads in the layer before, and in the picture.
"use strict";
window.gpuconv = window.gpuconv || {};

(() => {
  const all = (n) => Array.from({ length: n }, (_, i) => i);
  const POOLS = ["max_pool", "avg_pool", "sum_pool"];

  /** The channels of the layer before that filter k sees. */
  function seen(layer, before, k) {
    if (layer.links) return layer.links[k];
    const each = before.shape[0] / layer.groups;
    const begin = Math.floor(k / (layer.shape[0] / layer.groups)) * each;
    return all(each).map((c) => begin + c);
  }

  /** [{from, channels, top, left, rows, columns, dilation}]: what element `index` reads. A window
      may reach into the padding. A vector is one row. */
  function windows(layers, layer, index) {
    const before = layers[layer.from[0]];
    const one = (from, channels, top, left, rows, columns, dilation = [1, 1]) =>
      ({ from, channels, top, left, rows, columns, dilation });
    if (!before) return [];
    if (layer.kind === "conv" || POOLS.includes(layer.kind)) {
      const [c, p, q] = index;
      const channels = layer.kind === "conv" ? seen(layer, before, c) : [c];
      const top = p * layer.stride[0] - layer.pads[0][0];
      const left = q * layer.stride[1] - layer.pads[1][0];
      return [one(before.number, channels, top, left, ...layer.kernel, layer.dilation)];
    }
    if (layer.kind === "adaptive_avg_pool") {
      const [c, p, q] = index;
      const [, H, W] = before.shape;
      const [, P, Q] = layer.shape;
      const [top, left] = [Math.floor((p * H) / P), Math.floor((q * W) / Q)];
      const rows = Math.ceil(((p + 1) * H) / P) - top;
      return [one(before.number, [c], top, left, rows, Math.ceil(((q + 1) * W) / Q) - left)];
    }
    if (layer.kind === "linear" || layer.kind === "softmax") {
      return [one(before.number, [0], 0, 0, 1, before.shape[0])];
    }
    if (layer.kind === "flatten" && before.shape.length === 3) {
      const at = unravel(index[0], before.shape);
      return [one(before.number, [at[0]], at[1], at[2], 1, 1)];
    }
    if (layer.kind === "concat") {
      let channel = index[0];
      for (const from of layer.from) {
        if (channel < layers[from].shape[0]) return [one(from, [channel], index[1], index[2], 1, 1)];
        channel -= layers[from].shape[0];
      }
    }
    if (layer.kind === "response_norm") {
      const first = Math.max(0, index[0] - Math.floor(layer.size / 2));
      const last = Math.min(before.shape[0] - 1, index[0] + Math.floor((layer.size - 1) / 2));
      const channels = all(last - first + 1).map((c) => first + c);
      return [one(before.number, channels, index[1], index[2], 1, 1)];
    }
    const [channel, row, column] = index.length === 3 ? index : [0, 0, index[0]];
    return layer.from.map((from) => one(from, [channel], row, column, 1, 1));
  }

  function unravel(flat, shape) {
    const index = [];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index.unshift(flat % shape[axis]);
      flat = Math.floor(flat / shape[axis]);
    }
    return index;
  }

  const ravel = (index, shape) => index.reduce((flat, i, axis) => flat * shape[axis] + i, 0);

  /** The rows and columns of the picture that can change element `index`: {top, left, rows,
      columns}; all of it once a layer reads everything. */
  function field(layers, layer, index) {
    const [row, column] = index.length === 3 ? index.slice(1) : [0, 0];
    let box = index.length === 3 ? [row, row, column, column] : null;
    let at = layer;
    if (box === null && layer.kind === "flatten") {
      [at] = layer.from.map((from) => layers[from]);
      const [, y, x] = unravel(index[0], at.shape);
      box = [y, y, x, x];
    }
    const boxes = new Map([[at.number, box]]);
    for (let number = at.number; number > 0; number--) {
      if (!boxes.has(number)) continue;
      const reached = boxes.get(number);
      for (const from of layers[number].from) {
        const wider = before(layers, layers[number], reached);
        boxes.set(from, join(boxes.get(from), wider, boxes.has(from)));
      }
    }
    const [, height, width] = layers[0].shape;
    const [top, bottom, left, right] = boxes.get(0) || [0, height - 1, 0, width - 1];
    const inside = (v, size) => Math.min(size - 1, Math.max(0, v));
    const [y, x] = [inside(top, height), inside(left, width)];
    return {
      top: y, left: x, rows: inside(bottom, height) - y + 1, columns: inside(right, width) - x + 1,
    };
  }

  const join = (a, b, known) => {
    if (!known) return b;
    if (a === null || b === null) return null;
    return [Math.min(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.max(a[3], b[3])];
  };

  /** [top, bottom, left, right] of what the layer reads for such a part of its output. */
  function before(layers, layer, box) {
    if (box === null || layer.shape.length !== 3) return null;
    if (layer.kernel) {
      const reach = (from, to, axis) => {
        const first = from * layer.stride[axis] - layer.pads[axis][0];
        const extent = (layer.kernel[axis] - 1) * layer.dilation[axis];
        return [first, to * layer.stride[axis] - layer.pads[axis][0] + extent];
      };
      return [...reach(box[0], box[1], 0), ...reach(box[2], box[3], 1)];
    }
    return layer.kind === "adaptive_avg_pool" ? null : box;
  }

  Object.assign(window.gpuconv, { windows, field, unravel, ravel });
})();
