"""What the page can ask of a network, whoever asks: runs, maps, nodes, filters, pictures."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import nn, no_grad
from gpuconv.errors import unknown
from gpuconv.page.description import (
    Part,
    bytes_of,
    check_number,
    describe,
    filters_of,
    floats,
    page_of,
    part_of,
    weights_of,
)
from gpuconv.page.explanations import attribution_map, offered
from gpuconv.page.graph import Graph
from gpuconv.page.top_patches import Searches, searchable

if TYPE_CHECKING:
    from gpuconv.data import Dataset, Preprocessing

KEPT_VALUES = 128_000_000  # of all runs together: 512 MB of float32
MAX_RUNS = 16
FIRST_VALUES = 1 << 20  # sent with a run; the page asks for the rest when it comes into sight
PICTURE_PIXELS = 40_000_000
RUN_GONE = "this run is gone: the network or the picture has changed; send the picture again"

Answer = dict[str, Any]


class Missing(LookupError):
    """What was asked for is not there."""


class Gone(LookupError):
    """The run that was asked about has been forgotten."""


@dataclass(frozen=True)
class _Run:
    pixels: np.ndarray  # uint8 (C, H, W)
    x: np.ndarray  # float32 (1, C, *size)
    outputs: list[np.ndarray]


class Session:
    """A network, the last runs of it, and the pictures to show it.

    preprocessing: how pictures become the network's input. test: returns labelled pictures to
    choose from, called when first needed; None without. start: the weights before training, by
    name; None where they are not known.
    Every method gives a dict that JSON can hold, and may be called from any thread.
    Raises ValueError for what is wrong in the question, `Missing` for what is not there,
    `Gone` for a run that was forgotten.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        title: str,
        classes: list[str] | None = None,
        test: Callable[[], Dataset] | None = None,
        start: Mapping[str, np.ndarray] | None = None,
        note: str = "",
    ) -> None:
        self.preprocessing, self.title, self.note = preprocessing, title, note
        self.graph = Graph(model.eval())
        count = self.graph[len(self.graph) - 1].shape[0]
        self.classes = list(classes or map(str, range(count)))
        if len(self.classes) != count:
            raise ValueError(f"show: {len(self.classes)} classes for {count} scores")
        self.version = 1
        self._methods = offered(self.graph)
        self._searchable = searchable(self.graph)
        self._searches: Searches | None = None
        self._start = None if start is None else dict(start)
        self._test, self._lock = test, threading.RLock()
        self._dataset: Dataset | None = None
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._counter = 0

    # ---- the network ---------------------------------------------------------------------------

    def describe(self) -> Answer:
        """`description.describe`, with what else this session offers."""
        described = describe(self.graph, self.title, self.classes, self.preprocessing)
        test = self._samples()
        return described | {
            "note": self.note,
            "version": self.version,
            "test": 0 if test is None else len(test),
            "start": self._start is not None,
            "methods": [
                {"name": name, "title": method.title, "signed": method.signed}
                for name, method in self._methods.items()
            ],
            "patches": [] if test is None else self._searchable,
        }

    def filters(self, number: int, when: str) -> Answer:
        """A layer's weights, (K, C, R, S) or (K, features), "now" or as they were at the
        "start"."""
        node = self._node(number)
        if filters_of(node.layer) is None:
            raise Missing(f"{node.name} has no filters")
        if when not in ("now", "start"):
            raise ValueError(f'when must be "now" or "start", got {when!r}')
        with self._lock:
            array = node.layer.weight.data
            if when == "start":
                if self._start is None:
                    raise Missing("the weights before training are not known")
                array = self._start[f"{node.name}.weight"]
            return {"shape": list(array.shape), "data": floats(array), "version": self.version}

    def weights(self, number: int, channel: int) -> Answer:
        """What belongs to one channel of a layer's output: "weight", "bias" and so on, by name."""
        node = self._node(number)
        check_number(f"channels of {node.name}", channel, node.shape[0])
        with self._lock:
            arrays = weights_of(node)
            return {name: floats(array[channel]) for name, array in arrays.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """New weights for the network; runs of the old ones are forgotten."""
        with self._lock:
            self.graph.model.load_state_dict(state)
            self.version += 1
            self._runs.clear()

    def keep_start(self, state: Mapping[str, np.ndarray]) -> None:
        """These are the weights before training."""
        with self._lock:
            self._start = {name: np.array(array) for name, array in state.items()}

    def scores(self, x: np.ndarray) -> np.ndarray:
        """The scores of many pictures as the network reads them, float32 (N, C, *size)."""
        with self._lock, no_grad():
            y = self.graph.model(x).numpy()
        return np.log(y) if self.graph.ends_with_softmax else y

    def warm_up(self) -> None:
        """Run a black picture, so that the first one a user draws finds the loops compiled."""
        self.run(np.zeros(self.preprocessing.image_shape, np.uint8))

    # ---- one picture through it ----------------------------------------------------------------

    def run(self, pixels: np.ndarray) -> Answer:
        """Every layer's output for one picture, uint8 (C, H, W) of the size the network reads.

        "run" is its name for later questions, "probabilities" the answer, "maps" the first channels
        of the layers as `maps` gives them; those beyond FIRST_VALUES have to be asked for.
        """
        if pixels.shape != self.preprocessing.image_shape:
            raise ValueError(
                f"a picture must be {'x'.join(map(str, self.preprocessing.image_shape))} pixels, "
                f"got {'x'.join(map(str, pixels.shape))}"
            )
        with self._lock:
            x = self.preprocessing.to_float(pixels)
            with np.errstate(all="ignore"):
                outputs = self.graph.outputs(x)
            self._counter += 1
            name = str(self._counter)
            self._runs[name] = _Run(pixels, x, outputs)
            most = max(1, min(MAX_RUNS, KEPT_VALUES // self.graph.values))
            while len(self._runs) > most:
                self._runs.popitem(last=False)
        sent: list[Answer] = []
        room = FIRST_VALUES
        for node in self.graph:
            room -= page_of(node) * int(np.prod(node.shape[1:]))
            if room < 0:
                break
            sent.append(self._maps(outputs, node.number, 0))
        probabilities = [float(p) if np.isfinite(p) else None for p in outputs[-1]]
        return {
            "run": name,
            "version": self.version,
            "probabilities": probabilities,
            "maps": sent,
        }

    def maps(self, run: str, number: int, first: int) -> Answer:
        """A page of a layer's channels, from `first` on: their values, and the least and largest of
        the whole layer.
        """
        node = self._node(number)
        check_number(f"channels of {node.name}", first, node.shape[0])
        return self._maps(self._run(run).outputs, number, first)

    def _maps(self, outputs: list[np.ndarray], number: int, first: int) -> Answer:
        y = outputs[number]
        finite = y[np.isfinite(y)]
        return {
            "layer": number,
            "first": first,
            "min": float(finite.min()) if finite.size else 0.0,
            "max": float(finite.max()) if finite.size else 0.0,
            "data": floats(y[first : first + page_of(self.graph[number])]),
        }

    def values(self, run: str, parts: list[Part]) -> Answer:
        """ "values", an array for each part of a layer's output, as `part_of` gives them."""
        outputs = self._run(run).outputs
        for part in parts:
            self._node(part.number)
        return {"values": [floats(part_of(outputs[part.number], part)) for part in parts]}

    def explanation(self, run: str, method: str, target: int) -> Answer:
        """The evidence for class `target` in the picture: a map (1, H, W)."""
        check_number("classes", target, len(self.classes))
        if method not in self._methods:
            raise unknown("method", method[:40], self._methods)
        with self._lock, np.errstate(all="ignore"):
            array = attribution_map(method, self.graph, self._run(run).x, target)
        return {"shape": list(array.shape), "data": floats(array), "method": method}

    def patches(self, number: int, filter: int) -> Answer:
        """What `Searches.ask` finds for a layer with maps and one of its filters: to be asked again
        until all pictures are seen.
        """
        node, dataset = self._node(number), self._samples()
        if dataset is None:
            raise Missing("there are no test pictures here to find patches in")
        if number not in self._searchable:
            raise Missing(f"{node.name} has no maps whose top-activating patches could be found")
        with self._lock, np.errstate(all="ignore"):
            if self._searches is None:
                self._searches = Searches(self.graph, self.preprocessing, dataset)
            return self._searches.ask(self.version, number, filter)

    # ---- pictures ------------------------------------------------------------------------------

    def sample(self, index: int) -> Answer:
        """A test picture, "pixels" uint8 as base64, and its "label"."""
        dataset = self._samples()
        if dataset is None:
            raise Missing("there are no test pictures here; draw one, or upload one")
        check_number("test pictures", index, len(dataset))
        return picture(dataset.images[index]) | {
            "index": index,
            "label": int(dataset.labels[index]),
        }

    def read_picture(self, content: bytes) -> Answer:
        """A PNG, JPEG or other file as a picture for the network, as `gpuconv predict` reads it."""
        from PIL import Image, UnidentifiedImageError

        from gpuconv.data import decode_image

        try:
            with Image.open(io.BytesIO(content)) as opened:
                width, height = opened.size
        except UnidentifiedImageError:
            width = height = 0  # decode_image says what is wrong
        except Exception as error:  # a decoder's own kinds, and a decompression bomb
            raise ValueError(f"unreadable picture: {' '.join(str(error).split())}") from None
        if width * height > PICTURE_PIXELS:
            raise ValueError(
                f"a picture of {width}x{height} is too large; at most {PICTURE_PIXELS:,} pixels"
            )
        pixels = decode_image(io.BytesIO(content), "upload", self.preprocessing.grayscale)
        fitted, inverted = self.preprocessing.fit(pixels)
        return picture(fitted) | {"inverted": inverted}

    def _samples(self) -> Dataset | None:
        with self._lock:
            if self._dataset is None and self._test is not None:
                self._dataset, self._test = self._test(), None
                shape = self.preprocessing.image_shape
                if self._dataset.image_shape != shape:
                    self._dataset = None
            return self._dataset

    def _run(self, name: str) -> _Run:
        with self._lock:
            if name not in self._runs:
                raise Gone(RUN_GONE)
            return self._runs[name]

    def _node(self, number: int) -> Any:
        check_number("layers", number, len(self.graph))
        return self.graph[number]


def picture(pixels: np.ndarray) -> Answer:
    """Pixels (C, H, W), uint8 or floats from 0 to 1, for the page."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return {"shape": list(pixels.shape), "pixels": bytes_of(pixels)}
