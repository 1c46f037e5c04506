"""The package onnx, which reads and writes the files; an optional one."""

from __future__ import annotations

from typing import Any


def onnx_package() -> Any:
    """The package, with its helpers. ImportError, with the way out, where it is not installed."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ImportError(
            "gpuconv.onnx needs the package onnx: pip install 'gpuconv[onnx]'", name="onnx"
        ) from None
    return onnx
