// What the page shows, for all its parts: each script adds its own to the object `gpuconv`.
"use strict";

window.gpuconv = {
  page: {
    model: null, // what describe() said
    run: null, // the last run, as the source names it; questions about nodes go to it
    maps: new Map(), // of that run, by layer: {first, min, max, values}
    best: 0,
    selected: null, // {layer, index}
    hovered: null,
    scale: "layer",
    ran: 0, // runs done
    latency: null, // from the last pen-up to its maps being drawn, in ms
  },
};
