"""Write a checkpoint's network as an ONNX file, for other programs.

The file's input is what the network reads: pictures that are prepared already. How, and the names
of the classes, stand in the file's metadata_props. Every command that takes a checkpoint also takes
an .onnx file, of gpuconv's or of another program.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpuconv import checkpoint, onnx
from gpuconv.cli.options import CHECKPOINT, OWN_NETWORK, add_options, image_shape, path
from gpuconv.onnx.export import OPSET

EXAMPLES = """\
  gpuconv onnx runs/lenet-mnist/best.safetensors -o lenet.onnx
  gpuconv predict lenet.onnx digit.png
  gpuconv onnx runs/own/best.safetensors --model mynet.py:build --input 3,64,64
"""
KEPT = ("input", "classes", "image_shape", "dark_border", "resize", "stratified")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser,
        CHECKPOINT,
        ("-o --output", "ONNX", path, "", "net.onnx"),
        ("--input", "C,H,W", image_shape, "one image's shape (default: the network's own)"),
        OWN_NETWORK,
    )


def run(args: argparse.Namespace) -> int:
    found = checkpoint.read(args.checkpoint)
    kept = {name: found.metadata[name] for name in KEPT if found.metadata.get(name) is not None}
    if data := (found.metadata.get("settings") or {}).get("data"):
        kept["settings"] = {"data": data}
    model = found.build(args.built_by)
    onnx.export(model, args.output, args.input, **kept)
    shape = ", ".join(map(str, args.input or model.input_shape or ()))
    size = Path(args.output).stat().st_size
    print(f"{args.output}: {size:,} bytes, opset {OPSET}; the input x is (batch, {shape})")
    return 0
