"""What the page can ask of a network, whoever asks: runs, maps, nodes, filters, pictures."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import nn, no_grad, ops
from gpuconv.errors import unknown
from gpuconv.page.description import (
    WITH_FILTERS,
    Answer,
    Part,
    check_number,
    describe,
    packed,
    page_of,
    part_of,
    weights_of,
)
from gpuconv.page.explanations import Searches, attribution_map, offered
from gpuconv.page.graph import Graph

if TYPE_CHECKING:
    from gpuconv.data import Dataset, Loader, Preprocessing

KEPT_VALUES = 128_000_000  # of all runs together: 512 MB of float32
MAX_RUNS = 16
MISTAKES = 12
MOST_CLASSES = 1000  # of a confusion matrix
FIRST_VALUES = 1 << 20  # sent with a run; the page asks for the rest when it comes into sight


class Missing(LookupError):
    """What was asked for is not there."""


class Gone(LookupError):
    """The run that was asked about has been forgotten."""


class Session:
    """A network, the last runs of it, and the pictures to show it.

    preprocessing: how pictures become the network's input. test: labelled pictures to
    choose from, left out where they have another shape. start: gives the weights before training,
    by name; None where they are not known.
    Every method gives a dict that JSON can hold, and may be called from any thread.
    Raises ValueError for what is wrong in the question, `Missing` for what is not there,
    `Gone` for a run that was forgotten.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        title: str,
        classes: Sequence[str] | None = None,
        test: Dataset | None = None,
        start: Callable[[], Mapping[str, np.ndarray]] | None = None,
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
        self._start = start
        fits = test is not None and test.image_shape == preprocessing.image_shape
        self.test = test if fits else None
        self._searches = Searches(self.graph, preprocessing, self.test) if self.test else None
        self._lock = threading.RLock()
        self._runs: OrderedDict[str, list[np.ndarray]] = OrderedDict()  # every node's output
        self._counter = 0

    # ---- the network ---------------------------------------------------------------------------

    def describe(self) -> Answer:
        """`description.describe`, with what else this session offers."""
        described = describe(self.graph, self.title, self.classes, self.preprocessing)
        return described | {
            "note": self.note,
            "test": 0 if self.test is None else len(self.test),
            "start": self._start is not None,
            "methods": [
                {"name": name, "title": method.title} for name, method in self._methods.items()
            ],
            "patches": self._searches.layers if self._searches else [],
        }

    def filters(self, number: int, when: str) -> Answer:
        """A layer's weights, (K, C, R, S) or (K, features), "now" or as they were at the
        "start"."""
        node = self._node(number)
        if node.kind not in WITH_FILTERS:
            raise Missing(f"{node.name} has no filters")
        if when not in ("now", "start"):
            raise ValueError(f'when must be "now" or "start", got {when!r}')
        with self._lock:
            array = node.layer.weight.data
            if when == "start":
                if self._start is None:
                    raise Missing("the weights before training are not known")
                array = self._start()[f"{node.name}.weight"]
            return {"shape": list(array.shape), "values": packed(array)}

    def weights(self, number: int, channel: int) -> Answer:
        """What belongs to one channel of a layer's output: "weight", "bias" and so on, by name."""
        node = self._node(number)
        check_number(f"channels of {node.name}", channel, node.shape[0])
        with self._lock:
            arrays = weights_of(node)
            return {name: packed(array[channel]) for name, array in arrays.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """New weights for the network; runs of the old ones are forgotten."""
        with self._lock:
            self.graph.model.load_state_dict(state)
            self.version += 1
            self._runs.clear()

    def evaluate(self, held: Loader) -> Answer:
        """The network on all pictures of a loader that does not shuffle.

        "confusion": counts, a row for each true class and a column for each answer, or None for
        more classes than a page can show; "mistakes": the
        wrong answers with the least probability for the truth, worst first: "pixels" as the page
        draws them, "label", "answer", "sure" (the answer's probability). "accuracy", "images".
        """
        shares, labels = [], []
        for x, y in held:
            with self._lock, no_grad(), np.errstate(all="ignore"):
                found = self.graph.model(x).numpy()
                shares.append(found if self.graph.ends_with_softmax else ops.softmax(found))
            labels.append(y)
        p, truth = np.concatenate(shares), np.concatenate(labels)
        answers, classes = p.argmax(axis=1), p.shape[1]
        confusion = None
        if classes <= MOST_CLASSES:
            pairs = np.bincount(truth * classes + answers, minlength=classes**2)
            confusion = pairs.reshape(classes, classes).tolist()
        of_truth = np.nan_to_num(p[np.arange(len(truth)), truth])
        wrong = np.flatnonzero(answers != truth)
        worst = wrong[np.argsort(of_truth[wrong], kind="stable")][:MISTAKES]
        return {
            "confusion": confusion,
            "accuracy": float((answers == truth).mean()),
            "images": len(truth),
            "mistakes": [
                {
                    **picture(held.dataset.images[i]),
                    "label": int(truth[i]),
                    "answer": int(answers[i]),
                    "sure": float(p[i, answers[i]]),
                }
                for i in worst
            ],
        }

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
            self._runs[name] = outputs
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
        return {"run": name, "probabilities": outputs[-1].tolist(), "maps": sent}

    def maps(self, run: str, number: int, first: int) -> Answer:
        """A page of a layer's channels, from `first` on: their values, and the least and largest of
        the whole layer.
        """
        node = self._node(number)
        check_number(f"channels of {node.name}", first, node.shape[0])
        return self._maps(self._run(run), number, first)

    def _maps(self, outputs: list[np.ndarray], number: int, first: int) -> Answer:
        y = outputs[number]
        finite = y[np.isfinite(y)]
        return {
            "layer": number,
            "first": first,
            "min": float(finite.min()) if finite.size else 0.0,
            "max": float(finite.max()) if finite.size else 0.0,
            "values": packed(y[first : first + page_of(self.graph[number])]),
        }

    def values(self, run: str, parts: list[Part]) -> Answer:
        """ "values", an array for each part of a layer's output, as `part_of` gives them."""
        outputs = self._run(run)
        for part in parts:
            self._node(part.number)
        return {"values": [packed(part_of(outputs[part.number], part)) for part in parts]}

    def explanation(self, run: str, method: str, target: int) -> Answer:
        """The evidence for class `target` in the picture: a map (1, H, W)."""
        check_number("classes", target, len(self.classes))
        if method not in self._methods:
            raise unknown("method", method[:40], self._methods)
        with self._lock, np.errstate(all="ignore"):
            array = attribution_map(method, self.graph, self._run(run)[0][None], target)
        return {"shape": list(array.shape), "values": packed(array), "method": method}

    def patches(self, number: int, filter: int) -> Answer:
        """What `Searches.ask` finds for a layer with maps and one of its filters: to be asked again
        until all pictures are seen.
        """
        node = self._node(number)
        if self._searches is None:
            raise Missing("there are no test pictures here to find patches in")
        if number not in self._searches.layers:
            raise Missing(f"{node.name} has no maps whose top-activating patches could be found")
        with self._lock, np.errstate(all="ignore"):
            return self._searches.ask(self.version, number, filter)

    # ---- pictures ------------------------------------------------------------------------------

    def sample(self, index: int) -> Answer:
        """A test picture, "pixels" uint8 as base64, and its "label"."""
        if self.test is None:
            raise Missing("there are no test pictures here; draw one, or upload one")
        check_number("test pictures", index, len(self.test))
        label = int(self.test.labels[index])
        return picture(self.test.images[index]) | {"index": index, "label": label}

    def read_picture(self, content: bytes) -> Answer:
        """A PNG, JPEG or other file as a picture for the network, as `gpuconv predict` reads it."""
        found = self.preprocessing.picture(io.BytesIO(content), name="upload")
        return picture(found.pixels) | {"inverted": found.inverted, "blank": found.blank}

    def _run(self, name: str) -> list[np.ndarray]:
        with self._lock:
            if name not in self._runs:
                raise Gone("this run is forgotten; send the picture again")
            return self._runs[name]

    def _node(self, number: int) -> Any:
        check_number("layers", number, len(self.graph))
        return self.graph[number]


def picture(pixels: np.ndarray) -> Answer:
    """Pixels (C, H, W), uint8 or floats from 0 to 1, for the page."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return {"shape": list(pixels.shape), "pixels": packed(pixels)}
