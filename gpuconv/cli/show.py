"""Look inside a network in the browser: draw a digit, see every layer's maps, open any value.

Serves a page on this machine alone until Ctrl-C. The model is a checkpoint, or the name of a
network of gpuconv.models, which is then shown untrained; without one it is what `gpuconv train`
left in runs/lenet-mnist.
"""

from __future__ import annotations

import argparse
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuconv.cli.options import add_port, one_of

if TYPE_CHECKING:
    from gpuconv.cli.recipes import Settings
    from gpuconv.page import Session

HELP = "look inside a network in the browser: draw, open any value, watch it learn"
EXAMPLES = """\
  gpuconv show
  gpuconv show runs/fashion/best.safetensors --port 9000
  gpuconv show --export page.html         one file with the weights inside, for any browser
  gpuconv show lenet                      untrained, to see what training changes
"""
JUDGED = 1000  # pictures for the confusion matrix of a run
DEFAULT = Path("runs") / "lenet-mnist" / "best.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="CHECKPOINT|NAME", help=f"(default: {DEFAULT})")
    add("--data", metavar="NAME|PATH", help="test pictures to choose from (default: the run's)")
    add(
        "--export",
        metavar="HTML",
        help="write the page as one offline file, for networks of up to 2 million parameters",
    )
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="listen on another address; anybody who reaches it can use the page",
    )
    add_port(parser)
    add(
        "--device",
        default="cpu",
        type=one_of("device", ("cpu", "reference")),
        metavar="NAME",
        help="cpu or reference (default: cpu)",
    )


def run(args: argparse.Namespace) -> int:
    from gpuconv.page.server import PageServer

    session = open_session(args.model, args.data, args.device)
    if args.export:
        from gpuconv.page.export import export

        print(f"{args.export}: {export(session, args.export):,} bytes; open it in any browser")
        return 0
    session.warm_up()
    with PageServer(session, args.host, args.port) as server:
        announce(server, args.port, "Ctrl-C ends")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def watch(trainer: Any, loaders: Any, chosen: Settings, port: int, train: Any) -> None:
    """Serve the page of a run that `train(again)` begins or goes on with, until Ctrl-C."""
    from gpuconv.page.live import Live
    from gpuconv.page.server import PageServer
    from gpuconv.train import Interrupted

    session, held, what = _session_of(trainer, loaders, chosen)
    session.warm_up()
    live = Live(session, held, what)
    trainer.callbacks.append(live)

    def run(again: bool) -> None:
        try:
            train(again)
        except Interrupted as stop:
            if live.state == "stopping":
                print(f"stopped in the page: {stop}", flush=True)
            raise

    with PageServer(session, port=port, live=live) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        announce(server, port, "press Start there")
        try:
            live.follow(run)
        except KeyboardInterrupt as stop:
            if live.state == "stopped":  # and then interrupted, waiting to go on
                raise Interrupted(signal.SIGINT, live.problem) from None
            if live.state != "done" or isinstance(stop, Interrupted):
                raise
        finally:
            server.shutdown()


def announce(server: Any, port: int, hint: str) -> None:
    """Say where the page is."""
    from gpuconv.page.guard import is_loopback

    if server.moved:
        print(f"port {port} is busy; taking the next free one")
    if not is_loopback(server.host):
        print(f"listening on {server.host}: anybody who reaches this address can use the page")
    print(f"{server.session.title}: {server.url} ({hint})", flush=True)


def open_session(model: str | None, data: str | None, device: str) -> Session:
    """The session for a checkpoint or a network's name. Raises as `checkpoint.read` does."""
    from gpuconv import models
    from gpuconv.models.zoo import MODELS

    if model is None:
        if not DEFAULT.exists():
            raise ValueError(
                f"show: there is no {DEFAULT}; make it with `gpuconv train` (about a minute), or "
                "name a checkpoint, or see an untrained network with `gpuconv show lenet`"
            )
        model = str(DEFAULT)
    if model in MODELS and not Path(model).exists():
        network = models.build({"name": model}).to(device)
        return _session(network, _usual_metadata(network), f"{model}, untrained", data, "untrained")
    from gpuconv.cli.inputs import open_checkpoint

    found, network = open_checkpoint(model, device)
    result = found.metadata.get("result") or {}
    note = ""
    if "validation_accuracy" in result:
        note = f"{result['validation_accuracy']:.2%} of held-out pictures right"
    return _session(network, found.metadata, model, data, note)


def _session(network: Any, metadata: Any, title: str, data: str | None, note: str) -> Session:
    from gpuconv.cli.inputs import Input
    from gpuconv.page import Session

    wanted = Input(metadata, network)
    settings = metadata.get("settings") or {}
    name = data or settings.get("data")
    test = None
    if name:
        test = _test_pictures(wanted, name, required=data is not None)
    start = None
    if settings and network.spec:
        start = _built(network.spec, settings["seed"]).state_dict()
    return Session(network, wanted, title, metadata.get("classes"), test, start, note)


def _session_of(trainer: Any, loaders: Any, chosen: Settings) -> tuple[Session, Any, str]:
    """The session for a run, with a network of its own, and the pictures to judge it by."""
    from gpuconv.data import Loader

    loader, validation = loaders
    network = _built(trainer.model.spec, chosen["seed"])
    metadata = {
        **trainer.metadata,
        "input": {"mean": loader.mean, "std": loader.std},
        "classes": loader.dataset.classes,
    }
    session = _session(network, metadata, f"{chosen['model']} on {chosen['data']}", None, "")
    session.load(trainer.model.state_dict())
    dataset = (validation or loader).dataset
    dataset = dataset.subset(slice(0, JUDGED))
    how = {"size": loader.size, "mean": loader.mean, "std": loader.std}
    held = Loader(dataset, min(250, len(dataset)), shuffle=False, **how)
    kind = "training" if validation is None else "held-out"
    return session, held, f"{kind} pictures"


def _test_pictures(wanted: Any, name: str, required: bool) -> Any:
    """A function that gives the test pictures; None where the run's own are no longer there."""
    try:
        dataset = wanted.data(name, "test")
    except (OSError, ValueError):
        if required:
            raise
        return None
    return lambda: dataset


def _built(spec: Any, seed: int) -> Any:
    from gpuconv import models

    return models.build({**spec, "arguments": {**spec["arguments"], "seed": seed}})


def _usual_metadata(network: Any) -> dict[str, Any]:
    """For a network that reads 32x32 gray pictures: MNIST's digits, as `gpuconv train` does."""
    if network.input_shape != (1, 32, 32):
        return {}
    return {
        "image_shape": [1, 28, 28],
        "dark_border": True,
        "input": {"mean": [0.1307], "std": [0.3081]},
        "settings": {"data": "mnist", "seed": 0},
    }
