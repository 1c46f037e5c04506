// The page's questions put to the server that it came from.
"use strict";

(() => {
  async function answer(response) {
    if (!response.ok) throw new Error((await response.text()).trim());
    const found = await response.json();
    if (found.gone) throw Object.assign(new Error(found.gone), { gone: true });
    return found;
  }

  const ask = async (path, given = {}) =>
    answer(await fetch(`${path}?${new URLSearchParams(given)}`));

  const send = async (path, body, type = "application/json") =>
    answer(await fetch(path, { method: "POST", headers: { "Content-Type": type }, body }));

  const values = (found) => ({ ...found, values: gpuconv.floats(found.data) });
  const arrays = (found) => Object.fromEntries(
    Object.entries(found).map(([name, data]) => [name, gpuconv.floats(data)]));
  const pixels = (found) => ({ ...found, pixels: gpuconv.fromBase64(found.pixels) });

  gpuconv.source = {
    describe: () => ask("/api/model"),

    async run(picture) {
      const found = await send("/api/run", picture.pixels, "application/octet-stream");
      return { ...found, maps: found.maps.map(values) };
    },

    maps: async (run, layer, first) => values(await ask("/api/maps", { run, layer, first })),
    async values(run, windows) {
      const { values } = await send("/api/values", JSON.stringify({ run, windows }));
      return values.map(gpuconv.floats);
    },
    weights: async (layer, channel) => arrays(await ask("/api/weights", { layer, channel })),
    filters: async (layer, when) => values(await ask("/api/filters", { layer, when })),
    explanation: async (run, method, target) =>
      values(await ask("/api/explanation", { run, method, target })),
    async patches(layer, filter) {
      const found = await ask("/api/patches", { layer, filter });
      return { ...found, patches: found.patches?.map(gpuconv.readPatch) };
    },
    openTest: true, // any test picture can be opened by its number

    sample: async (index) => pixels(await ask("/api/sample", { index })),
    picture: async (file) => pixels(await send("/api/picture", file, "application/octet-stream")),

    training: () => ask("/api/training"),
    command: (action, given = {}) =>
      send("/api/training", JSON.stringify({ action, ...given })),
    events: () => new EventSource("/api/events"),
  };
})();
