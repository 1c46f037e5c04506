// A layer's maps on its canvas: where each lies, their colours, and the marks on them.
"use strict";

(() => {
  const { page, windows, single, field } = gpuconv;
  const GAP = 8;

  /** Where each map lies: {cell, columns, width, height, tiles: [[x, y]]}, in CSS pixels. */
  function layout(view) {
    const { shape, number } = view.layer;
    const { classes } = page.model;
    const room = Math.max(200, view.canvas.parentElement.clientWidth - 6);
    if (shape.length !== 3) {
      const cell = shape[0] <= 16 ? Math.min(34, Math.floor(room / shape[0])) : 15;
      const columns = Math.min(shape[0], Math.floor(room / cell));
      const rows = Math.ceil(shape[0] / columns);
      const words = shape[0] === classes.length && shape[0] <= 16;
      return { cell, columns, words, width: columns * cell, height: rows * cell + (words ? 18 : 0) };
    }
    const [, height, width] = shape;
    const shown = Math.min(view.layer.page, shape[0] - view.first);
    const wish = number === 0 || width > 64 ? 132 : shown <= 8 ? 88 : 78;
    const fit = Math.min(wish, Math.max(56, (room - 3 * GAP) / 4));
    const cell = width <= fit ? Math.floor(fit / width) : fit / width;
    const [w, h] = [width * cell, height * cell];
    const across = Math.max(1, Math.floor((room + GAP) / (w + GAP)));
    const tiles = Array.from({ length: shown }, (_, i) =>
      [(i % across) * (w + GAP), Math.floor(i / across) * (h + GAP)]);
    const rows = Math.ceil(shown / across);
    return {
      cell, tiles, w, h, across, width: Math.min(shown, across) * (w + GAP) - GAP,
      height: rows * (h + GAP) - GAP,
    };
  }

  /** A layer's colours, and the values at both ends of their legend. */
  function colours({ layer }, held) {
    const { min, max } = held;
    if (layer.kind === "input") return { low: min, high: max, colour: gpuconv.gray(min, max) };
    const most = scaleOf(layer, held);
    return { low: min < 0 ? -most : 0, high: most, colour: gpuconv.palette(most) };
  }

  /** The size of value that has the full colour. */
  function scaleOf(layer, held) {
    const own = Math.max(Math.abs(held.min), Math.abs(held.max));
    if (page.scale !== "network" || layer.kind === "softmax") return own;
    let most = 0;
    for (const [number, other] of page.maps) {
      if (number > 0 && number < page.model.layers.length - 1) {
        most = Math.max(most, Math.abs(other.min), Math.abs(other.max));
      }
    }
    return most || own;
  }

  /** Draw a layer's maps, marks and legend; false where its values are not here yet. */
  function paint(view) {
    const held = page.maps.get(view.layer.number);
    if (!held || held.first !== view.first) return false;
    const at = (view.at = layout(view));
    const context = gpuconv.sized(view.canvas, at.width, at.height);
    const { low, high, colour } = colours(view, held);
    if (at.tiles) paintMaps(view, at, held, colour, context);
    else paintVector(view, at, held, colour, context);
    paintMarks(view, context);
    gpuconv.legend(...view.legend.children, low, high, colour);
    return true;
  }

  function paintMaps(view, at, held, colour, context) {
    const [, height, width] = view.layer.shape;
    const whole = bitmapOf(view, held, height * at.tiles.length, width, colour);
    context.strokeStyle = gpuconv.style("--frame");
    context.lineWidth = 1;
    at.tiles.forEach(([x, y], i) => {
      context.drawImage(whole, 0, i * height, width, height, x, y, at.w, at.h);
      context.strokeRect(x + 0.5, y + 0.5, at.w - 1, at.h - 1);
    });
  }

  /** The maps below each other, one pixel a value: kept, since marks are drawn anew far more often
      than values or colours change. */
  function bitmapOf(view, held, rows, columns, colour) {
    const kept = view.bitmap;
    const look = `${gpuconv.dark()} ${scaleOf(view.layer, held)}`;
    if (kept?.held === held && kept.look === look) return kept.canvas;
    const canvas = gpuconv.bitmap(held.values, rows, columns, colour, kept?.canvas);
    view.bitmap = { canvas, held, look };
    return canvas;
  }

  function paintVector(view, at, held, colour, context) {
    gpuconv.squares(context, held.values, at.columns, at.cell, colour);
    if (!at.words) return;
    context.fillStyle = gpuconv.style("--faint");
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    page.model.classes.forEach((name, i) =>
      context.fillText(name.slice(0, 4), (i + 0.5) * at.cell, at.cell + 14));
  }

  /** The box around a window of a channel, in the canvas's pixels; null where it is not shown. */
  function boxOf({ at, first }, channel, { top, left, rows, columns, dilation }) {
    if (!at) return null;
    if (!at.tiles) {
      if (columns > 1) return [0, 0, at.width, at.height - (at.words ? 18 : 0)];
      return [(left % at.columns) * at.cell, Math.floor(left / at.columns) * at.cell, at.cell, at.cell];
    }
    const tile = at.tiles[channel - first];
    if (!tile) return null;
    const [height, width] = [(rows - 1) * dilation[0] + 1, (columns - 1) * dilation[1] + 1];
    return [tile[0] + left * at.cell, tile[1] + top * at.cell, width * at.cell, height * at.cell];
  }

  /** Outline the pointed-at and the chosen element, what they read, and their part of the picture. */
  function paintMarks(view, context) {
    const { number } = view.layer;
    const { layers } = page.model;
    for (const [node, strong] of [[page.hovered, false], [page.selected, true]]) {
      if (!node) continue;
      const mark = (window) => window.channels.forEach((channel) =>
        outline(context, boxOf(view, channel, window), strong));
      const layer = layers[node.layer];
      [single(layer.number, node.index), ...windows(layers, layer, node.index)]
        .filter(({ from }) => from === number).forEach(mark);
      if (number > 0 || layer.number === 0) continue;
      context.setLineDash([4, 3]);
      mark(field(layers, layer, node.index));
      context.setLineDash([]);
    }
  }

  function outline(context, box, strong) {
    if (!box) return;
    context.lineWidth = strong ? 4 : 3;
    context.strokeStyle = gpuconv.style("--paper");
    context.strokeRect(...box);
    context.lineWidth = strong ? 2 : 1.25;
    context.strokeStyle = gpuconv.style(strong ? "--select" : "--hover");
    context.strokeRect(...box);
  }

  /** The index of the element at a pointer's place, or null. */
  function elementAt(view, event) {
    const { at, layer } = view;
    if (!at) return null;
    if (!at.tiles) {
      const i = gpuconv.squareAt(view.canvas, event, layer.shape[0], at.columns, at.cell);
      return i < 0 ? null : [i];
    }
    const box = view.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const number = at.tiles.findIndex(([left, top]) =>
      x >= left && x < left + at.w && y >= top && y < top + at.h);
    if (number < 0) return null;
    const [left, top] = at.tiles[number];
    const row = Math.min(layer.shape[1] - 1, Math.floor((y - top) / at.cell));
    const column = Math.min(layer.shape[2] - 1, Math.floor((x - left) / at.cell));
    return [view.first + number, row, column];
  }

  Object.assign(gpuconv, { maps: { layout, paint, elementAt, boxOf } });
})();
