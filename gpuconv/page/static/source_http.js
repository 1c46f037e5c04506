// The page's questions put to the server that it came from.
"use strict";

(() => {
  async function answer(response) {
    const text = await response.text();
    if (!response.ok) throw new Error(text.trim());
    const found = gpuconv.parse(text);
    if (found.gone) throw Object.assign(new Error(found.gone), { gone: true });
    return found;
  }

  const ask = async (path, given = {}) =>
    answer(await fetch(`${path}?${new URLSearchParams(given)}`));

  const send = async (path, body, type = "application/json") =>
    answer(await fetch(path, { method: "POST", headers: { "Content-Type": type }, body }));

  gpuconv.source = {
    describe: () => ask("/api/model"),
    run: ({ pixels }) => send("/api/run", pixels, "application/octet-stream"),
    maps: (run, layer, first) => ask("/api/maps", { run, layer, first }),
    values: async (run, windows) =>
      (await send("/api/values", JSON.stringify({ run, windows }))).values,
    weights: (layer, channel) => ask("/api/weights", { layer, channel }),
    filters: (layer, when) => ask("/api/filters", { layer, when }),
    explanation: (run, method, target) => ask("/api/explanation", { run, method, target }),
    patches: (layer, filter) => ask("/api/patches", { layer, filter }),
    openTest: true, // any test picture can be opened by its number

    sample: (index) => ask("/api/sample", { index }),
    picture: (file) => send("/api/picture", file, "application/octet-stream"),

    training: () => ask("/api/training"),
    command: (action, given = {}) =>
      send("/api/training", JSON.stringify({ action, ...given })),
    events: () => new EventSource("/api/events"),
  };
})();
