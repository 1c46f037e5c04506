"""The package onnx, which reads and writes the files; an optional one."""

from __future__ import annotations

from typing import Any

from gpuconv.arguments import whole


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


def example_shape(what: str, shape: Any) -> tuple[int, ...]:
    """One example's shape as a tuple. TypeError for what is none."""
    if not isinstance(shape, tuple | list):
        raise TypeError(f"{what}: input_shape must be such as (3, 224, 224), got {shape!r}")
    return tuple(whole(f"{what}: input_shape", length) for length in shape)
