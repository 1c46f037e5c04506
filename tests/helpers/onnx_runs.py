"""Networks of ours and ONNX files, run side by side: the file by onnxruntime."""

import numpy as np
import onnx
import onnxruntime

import gpuconv
from gpuconv import onnx as ours

TOLERANCE = 1e-5  # of an output's largest value; float32


def runtime(path, x, name=None):
    """onnxruntime's outputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name or session.get_inputs()[0].name: x})


def compare(found, expected):
    """Lists of arrays: the same shapes, and values within TOLERANCE of the largest."""
    assert [a.shape for a in found] == [a.shape for a in expected]
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(b).all()
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max(), np.abs(a - b).max()


def outputs(network, x):
    """A network's outputs in evaluation mode."""
    with gpuconv.no_grad():
        y = network.eval()(x)
    return [part.numpy() for part in (y if isinstance(y, tuple) else (y,))]


def check_export(network, path, shape=None, x=None, **options):
    """Export a network; check the file's names and shapes, and onnxruntime's outputs. Returns the
    file's content.
    """
    modes = [module.training for module in network.modules()]
    ours.export(network, path, shape, **options)
    assert [module.training for module in network.modules()] == modes
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    state = network.state_dict()
    for array in file.graph.initializer:
        if array.name in state:
            assert tuple(array.dims) == state[array.name].shape, array.name
        else:
            assert array.name.startswith("constant"), array.name
    if x is None:
        shape = shape or network.input_shape
        x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    compare(runtime(path, x), outputs(network, x))
    return file
