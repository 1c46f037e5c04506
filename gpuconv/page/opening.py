"""Sessions for a checkpoint, for a network by its name, and for a run that is training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuconv import checkpoint, models
from gpuconv.data import Loader, Preprocessing
from gpuconv.nn import Module
from gpuconv.page.monitor import TrainingMonitor
from gpuconv.page.server import PageServer, announce
from gpuconv.page.session import Session
from gpuconv.train import Interrupted, Run

if TYPE_CHECKING:
    from gpuconv.data import Dataset, Scale

HELD_IMAGES = 1000  # of a run's held-out images, for its confusion matrix
# A network that reads 32x32 gray images is shown MNIST's digits, scaled as `gpuconv train` does.
MNIST_METADATA = {
    "image_shape": [1, 28, 28],
    "dark_border": True,
    "input": {"mean": [0.1307], "std": [0.3081]},
    "settings": {"data": "mnist", "seed": 0},
}


def of_model(
    model: Module,
    image_shape: tuple[int, int, int] | None = None,
    mean: Scale = None,
    std: Scale = None,
    classes: Sequence[str] | None = None,
    test: Callable[[], Dataset] | None = None,
    title: str = "network",
) -> Session:
    """A session for a network of your own, on `cpu` or `reference`, which gets into evaluation
    mode.

    image_shape: one picture's (C, H, W); None for the network's `input_shape`. A network that has
    an `input_shape` gets its pictures padded to it. mean, std: as for `data.to_float`. classes:
    names for the scores. test: gives labelled pictures of that shape to choose from.
    Raises ValueError where the network does not end with scores for such a picture, is too large
    (`graph.MAX_VALUES`), or does not know its input.

    >>> from gpuconv import nn
    >>> own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> of_model(own, (3, 8, 8), classes=["cat", "dog"]).describe()["layers"][1]["shape"]
    [4, 6, 6]
    """
    shape = image_shape or model.input_shape
    if model.input_shape is None:
        model.input_shape = shape
    metadata = {"image_shape": shape, "input": {"mean": mean, "std": std}}
    preprocessing = Preprocessing.from_metadata(metadata, model.input_shape)
    return Session(model, preprocessing, title, classes, test() if test else None)


def open_session(
    model: str,
    data: str | None = None,
    device: str = "cpu",
    built_by: str | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Session:
    """The session for a checkpoint, or for an untrained network of `gpuconv.models` by its name, or
    of "mynet.py:build".

    built_by: what builds the checkpoint's network, see `Checkpoint.build`. input_shape: of an
    untrained network that does not know it, or is to read another. data: a data set whose test
    images the page offers; None for the one it was trained on.
    Raises as `checkpoint.read` and `data.load` do.
    """
    if (model in models.MODELS and not Path(model).exists()) or models.is_file(model):
        network = models.named(model).to(device)
        network.input_shape = input_shape or network.input_shape
        if network.input_shape is None:
            raise ValueError(f"show: {model} does not say what it reads; give --input C,H,W")
        metadata = MNIST_METADATA if network.input_shape == (1, 32, 32) else {}
        return _session(network, metadata, f"{model}, untrained", data, "untrained")
    found = checkpoint.read(model)
    result = found.metadata.get("result") or {}
    note = ""
    if "validation_accuracy" in result:
        note = f"{result['validation_accuracy']:.2%} accuracy on held-out images"
    return _session(found.build(built_by).to(device), found.metadata, model, data, note)


def watch(run: Run, port: int, fit: Callable[[bool], None]) -> None:
    """Serve the page of a training run until Ctrl-C.

    fit: trains, called with whether to resume what the page stopped.
    Raises what `fit` raises by itself, and Interrupted.
    """
    session, held, title = _run_session(run)
    session.warm_up()
    monitor = TrainingMonitor(session, held, title)
    run.trainer.callbacks.append(monitor)
    with PageServer(session, port=port, monitor=monitor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            announce(server, port, "press Start there")
            monitor.follow(fit)
        except KeyboardInterrupt as stop:
            if type(stop) not in (KeyboardInterrupt, Interrupted):  # SIGTERM's
                raise
            if monitor.state == "stopped":  # and then interrupted while it waited to go on
                raise Interrupted(signal.SIGINT, monitor.problem) from None
            if monitor.state != "done" or isinstance(stop, Interrupted):
                raise
        finally:
            server.shutdown()


def _session(
    network: Any,
    metadata: Mapping[str, Any],
    title: str,
    data: str | None,
    note: str,
    start: Callable[[], Mapping[str, Any]] | None = None,
) -> Session:
    preprocessing = Preprocessing.from_metadata(metadata, network.input_shape)
    settings = metadata.get("settings") or {}
    name = data or settings.get("data")
    test = None
    if name:
        try:
            test = preprocessing.load(name, "test")
        except (OSError, ValueError):  # a run's own data may no longer be there
            if data is not None:
                raise
    spec, seed = network.spec or {}, settings.get("seed", 0)
    by_seed = spec.get("name") in models.MODELS and not settings.get("weights")
    if start is None and settings and by_seed:
        start = cache(lambda: _initial(spec, seed).state_dict())  # drawn when it is asked for
    return Session(network, preprocessing, title, metadata.get("classes"), test, start, note)


def _run_session(run: Run) -> tuple[Session, Loader, str]:
    """A session with a network of its own, the images to evaluate it on, and what these are."""
    trainer, training = run.trainer, run.training
    assert trainer.model.spec is not None  # `train.prepare` builds by name, or from a file
    network = _initial(trainer.model.spec, run.config["seed"])
    network.input_shape = trainer.model.input_shape
    first = {name: array.copy() for name, array in trainer.model.state_dict().items()}
    metadata = {
        **trainer.metadata,
        "input": {"mean": training.mean, "std": training.std},
        "classes": training.dataset.classes,
    }
    title = f"{run.config['model']} on {run.config['data']}"
    session = _session(network, metadata, title, None, "", lambda: first)
    session.load(trainer.model.state_dict())
    dataset = (run.validation or training).dataset.subset(slice(0, HELD_IMAGES))
    held = session.preprocessing.loader(dataset, 250)
    return session, held, f"{'training' if run.validation is None else 'held-out'} pictures"


def _initial(spec: Mapping[str, Any], seed: int) -> Any:
    """The network with its weights before training."""
    return models.build({**spec, "arguments": {**spec.get("arguments", {}), "seed": seed}})
