"""Networks as ONNX files, and back. Needs the package onnx: `pip install 'gpuconv[onnx]'`."""

from gpuconv.onnx.export import export

__all__ = ["export"]
