"""Networks as ONNX files, and back. Needs the package onnx: `pip install 'gpuconv[onnx]'`."""

from gpuconv.onnx.export import export
from gpuconv.onnx.load import load
from gpuconv.onnx.network import OnnxNetwork

__all__ = ["OnnxNetwork", "export", "load"]
