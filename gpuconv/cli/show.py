"""Look inside a network in the browser: draw a digit, see every layer's maps, open any value.

Serves a page on this machine alone until Ctrl-C. The model is a checkpoint, or the name of a
network of gpuconv.models or mynet.py:build, which is then shown untrained; without one it is what
`gpuconv train` left in runs/lenet-mnist.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpuconv.cli.options import MAY_LACK, OWN_NETWORK, PORT, add_options, image_shape, one_of, path

EXAMPLES = """\
  gpuconv show
  gpuconv show runs/fashion/best.safetensors --port 9000
  gpuconv show --export page.html         one file with the weights inside, for any browser
  gpuconv show lenet                      untrained, to see what training changes
"""
DEFAULT = Path("runs") / "lenet-mnist" / "best.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    host = "listen on another address; anybody who reaches it can use the page"
    device = one_of("device", ("cpu", "reference"))
    add_options(
        parser,
        ("model", "CHECKPOINT|NAME", str, f"(default: {DEFAULT})", MAY_LACK),
        ("--data", "NAME|PATH", path, "test pictures to choose from (default: the run's)"),
        ("--export", "HTML", path, "write an offline page, for up to 2 million parameters"),
        ("--host", "ADDRESS", str, host, "127.0.0.1"),
        PORT,
        ("--device", "NAME", device, "cpu or reference", "cpu"),
        ("--input", "C,H,W", image_shape, "of an untrained network (default: the model's own)"),
        OWN_NETWORK,
    )


def run(args: argparse.Namespace) -> int:
    from gpuconv.page import serve
    from gpuconv.page.opening import open_session

    if args.model is None and not DEFAULT.exists():
        raise ValueError(
            f"show: there is no {DEFAULT}; make it with `gpuconv train` (about a minute), or "
            "name a checkpoint, or see an untrained network with `gpuconv show lenet`"
        )
    session = open_session(
        args.model or str(DEFAULT), args.data, args.device, args.built_by, args.input
    )
    if args.export:
        from gpuconv.page.export import export

        print(f"{args.export}: {export(session, args.export):,} bytes; open it in any browser")
        return 0
    session.warm_up()
    serve(session, args.host, args.port)
    return 0
