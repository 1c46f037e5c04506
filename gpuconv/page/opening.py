"""Sessions for a checkpoint, for a network by its name, and for a run that is training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gpuconv import checkpoint, models
from gpuconv.data import Loader, Preprocessing
from gpuconv.page.monitor import TrainingMonitor
from gpuconv.page.server import PageServer, announce
from gpuconv.page.session import Session
from gpuconv.train import Interrupted, Run

HELD_IMAGES = 1000  # of a run's held-out images, for its confusion matrix
# A network that reads 32x32 gray images is shown MNIST's digits, scaled as `gpuconv train` does.
MNIST_METADATA = {
    "image_shape": [1, 28, 28],
    "dark_border": True,
    "input": {"mean": [0.1307], "std": [0.3081]},
    "settings": {"data": "mnist", "seed": 0},
}


def open_session(model: str, data: str | None = None, device: str = "cpu") -> Session:
    """The session for a checkpoint, or for an untrained network of `gpuconv.models` by its name.

    data: a data set whose test images the page offers; None for the one it was trained on.
    Raises as `checkpoint.read` and `data.load` do.
    """
    if model in models.MODELS and not Path(model).exists():
        network = models.build({"name": model}).to(device)
        metadata = MNIST_METADATA if network.input_shape == (1, 32, 32) else {}
        return _session(network, metadata, f"{model}, untrained", data, "untrained")
    found = checkpoint.read(model)
    result = found.metadata.get("result") or {}
    note = ""
    if "validation_accuracy" in result:
        note = f"{result['validation_accuracy']:.2%} accuracy on held-out images"
    return _session(found.build().to(device), found.metadata, model, data, note)


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
            if monitor.state == "stopped":  # and then interrupted while it waited to go on
                raise Interrupted(signal.SIGINT, monitor.problem) from None
            if monitor.state != "done" or isinstance(stop, Interrupted):
                raise
        finally:
            server.shutdown()


def _session(
    network: Any, metadata: Mapping[str, Any], title: str, data: str | None, note: str
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
    start = None
    if settings and network.spec:
        spec, seed = network.spec, settings["seed"]
        start = cache(lambda: _initial(spec, seed).state_dict())  # drawn when it is asked for
    return Session(network, preprocessing, title, metadata.get("classes"), test, start, note)


def _run_session(run: Run) -> tuple[Session, Loader, str]:
    """A session with a network of its own, the images to evaluate it on, and what these are."""
    trainer, training = run.trainer, run.training
    assert trainer.model.spec is not None  # `train.prepare` builds models of the zoo
    network = _initial(trainer.model.spec, run.config["seed"])
    metadata = {
        **trainer.metadata,
        "input": {"mean": training.mean, "std": training.std},
        "classes": training.dataset.classes,
    }
    title = f"{run.config['model']} on {run.config['data']}"
    session = _session(network, metadata, title, None, "")
    session.load(trainer.model.state_dict())
    dataset = (run.validation or training).dataset.subset(slice(0, HELD_IMAGES))
    held = session.preprocessing.loader(dataset, 250)
    return session, held, f"{'training' if run.validation is None else 'held-out'} pictures"


def _initial(spec: Mapping[str, Any], seed: int) -> Any:
    """The network with its weights before training."""
    return models.build({**spec, "arguments": {**spec["arguments"], "seed": seed}})
