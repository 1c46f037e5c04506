// Where a node looks: the window it reads in the layer before, and in the picture.
"use strict";

(() => {
  const all = (n) => Array.from({ length: n }, (_, i) => i);

  /** The channels of the layer before that filter k sees. */
  function seen(layer, before, k) {
    if (layer.links) return layer.links[k];
    const each = before[0] / layer.groups;
    const begin = Math.floor(k / (layer.shape[0] / layer.groups)) * each;
    return all(each).map((c) => begin + c);
  }

  /** What place `at` of a layer's rows (axis 0) or columns (axis 1) reads of `length` before it:
      [the first, how many, how far apart]. */
  function reach(layer, axis, at, length) {
    if (layer.kernel) {
      const first = at * layer.stride[axis] - layer.pads[axis][0];
      return [first, layer.kernel[axis], layer.dilation[axis]];
    }
    if (layer.kind !== "adaptive_avg_pool") return [at, 1, 1];
    const parts = layer.shape[axis + 1];
    const first = Math.floor((at * length) / parts);
    return [first, Math.ceil(((at + 1) * length) / parts) - first, 1];
  }

  /** The channels that response norm reads for one of `count`. */
  const neighbours = ({ size }, channel, count) => all(count)
    .filter((c) => c >= channel - Math.floor(size / 2) && c <= channel + Math.floor((size - 1) / 2));

  /** An element, or `count` of a vector, as a window. */
  const single = (from, index, count = 1) => {
    const [channel, top, left] = index.length === 3 ? index : [0, 0, index[0]];
    return { from, channels: [channel], top, left, rows: 1, columns: count, dilation: [1, 1] };
  };

  /** [{from, channels, top, left, rows, columns, dilation}]: what element `index` reads. A window
      may reach into the padding. A vector is one row. */
  function windows(layers, layer, index) {
    const before = layers[layer.from[0]];
    if (!before || layer.kind === "other") return []; // what such a layer reads is not known
    const [channel, ...place] = index;
    switch (layer.kind) {
      case "linear":
      case "softmax": return [single(before.number, [0], before.shape[0])];
      case "flatten": return [single(before.number, unravel(channel, before.shape))];
      case "concat": {
        let [number, first] = [0, channel];
        while (first >= layers[layer.from[number]].shape[0]) {
          first -= layers[layer.from[number++]].shape[0];
        }
        return [single(layer.from[number], [first, ...place])];
      }
      case "response_norm":
        return [{ ...single(before.number, index), channels: neighbours(layer, channel, before.shape[0]) }];
    }
    if (!layer.kernel && layer.kind !== "adaptive_avg_pool") {
      return layer.from.map((from) => single(from, index));
    }
    const channels = layer.kind === "conv" ? seen(layer, before.shape, channel) : [channel];
    const [[top, rows, down], [left, columns, right]] =
      place.map((at, axis) => reach(layer, axis, at, before.shape[axis + 1]));
    return [{ from: before.number, channels, top, left, rows, columns, dilation: [down, right] }];
  }

  /** The index of a window's element i. */
  function readAt({ channels, top, left, rows, columns, dilation }, i) {
    const inner = i % (rows * columns);
    return [
      channels[Math.floor(i / (rows * columns))],
      top + Math.floor(inner / columns) * dilation[0], left + (inner % columns) * dilation[1],
    ];
  }

  /** For each element of one channel whether it lies in maps of that shape, or in their padding. */
  function inside(window, shape) {
    const [height, width] = shape.length === 3 ? shape.slice(1) : [1, shape[0]];
    return all(window.rows * window.columns).map((i) => {
      const [, y, x] = readAt(window, i);
      return y >= 0 && y < height && x >= 0 && x < width;
    });
  }

  /** What a pool's sum at a place (row, column) is divided by: 1 for sum-pooling, else the elements
      that count. */
  function divisor(layer, shape, place) {
    if (layer.kind === "sum_pool") return 1;
    const [rows, columns] = place.map((at, axis) => {
      const length = shape[axis + 1];
      const [before, after] = layer.count_include_pad ? layer.pads[axis] : [0, 0];
      const [first, count, step] = reach(layer, axis, at, length);
      return all(count).map((tap) => first + tap * step)
        .filter((x) => x >= -before && x < length + after).length;
    });
    return Math.max(1, rows * columns);
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

  /** The layer whose maps a flatten layer puts in one row; any other layer itself. */
  const unflattened = (layers, layer) => (layer.kind === "flatten" ? layers[layer.from[0]] : layer);

  /** The window of the picture that can change element `index`; all of it once a layer reads
      everything. */
  function field(layers, layer, index) {
    const at = unflattened(layers, layer);
    const place = at === layer ? index : unravel(index[0], at.shape);
    const [, row, column] = place;
    const boxes = new Map([[at.number, place.length === 3 ? [row, row, column, column] : null]]);
    for (let number = at.number; number > 0; number--) {
      if (!boxes.has(number)) continue;
      const reached = boxes.get(number);
      for (const from of layers[number].from) {
        const wider = before(layers[number], layers[from].shape, reached);
        boxes.set(from, boxes.has(from) ? join(boxes.get(from), wider) : wider);
      }
    }
    const [, height, width] = layers[0].shape;
    const [top, bottom, left, right] = boxes.get(0) || [0, height - 1, 0, width - 1];
    const within = (v, size) => Math.min(size - 1, Math.max(0, v));
    const [y, x] = [within(top, height), within(left, width)];
    return {
      channels: all(layers[0].shape[0]), top: y, left: x, dilation: [1, 1],
      rows: within(bottom, height) - y + 1, columns: within(right, width) - x + 1,
    };
  }

  const join = (a, b) => a && b &&
    [Math.min(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.max(a[3], b[3])];

  /** [top, bottom, left, right] of what the layer reads, for such a part of its output. */
  function before(layer, shape, box) {
    if (box === null || layer.shape.length !== 3) return null;
    const ends = (first, last, axis) => {
      const [begin] = reach(layer, axis, first, shape[axis + 1]);
      const [end, count, step] = reach(layer, axis, last, shape[axis + 1]);
      return [begin, end + (count - 1) * step];
    };
    return [...ends(box[0], box[1], 0), ...ends(box[2], box[3], 1)];
  }

  Object.assign(gpuconv, {
    windows, single, readAt, inside, divisor, field, ravel, seen, reach, neighbours, unflattened,
  });
})();
