"""Every kernel gives the same bytes each time, whatever the order of blocks and threads; and is
right when few blocks must do the work of many.

The convolutions' own orders are in test_kernels_conv.py. Optimisers work in place: theirs are here.
"""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runs import F4, run
from test_kernels_optim import Tensors

from gpuconv.cuda import layout
from gpuconv.cuda.launch_config import LaunchConfig, config_elementwise
from gpuconv.data.on_device import config_image_batch
from gpuconv.ops import conv2d_launch, pool2d_launch, softmax_launch
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.shapes import window

ORDERS = [("forward", 0), ("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
rng = np.random.default_rng(61)


def floats(*shape):
    return rng.standard_normal(shape).astype(F4)


def cases():
    """name: (configuration, inputs, outputs, numbers) of one of each kernel."""
    shape, win = (3, 6, 13, 11), window(3, 2, 1)
    image, pooled = floats(3, 13, 11, 6), floats(3, 7, 6, 6)
    halved = floats(3, 6, 5, 6)
    inside, labels = (3, 13, 11, 6), rng.integers(0, 7, 40).astype(np.int32)
    pool = {"y": (pooled.shape, F4), "argmax": (pooled.shape, np.uint8)}
    scores, flat = floats(40, 7), floats(5001)
    kept = {"probabilities": (scores.shape, F4), "loss": ((1,), F4)}
    deep = Conv2dShape.of((3, 6, 13, 11), (6, 1, 3, 3), window(3, 1, 1), 6)
    wide = {"dy": image, "x": image}
    rows, each = softmax_launch.config_rowwise, config_elementwise
    smooth = {"right": 0.9, "even": 0.1 / 7, "ignore": -100}
    dropped = {"seed": 7, "threshold": round(0.4 * 2**32), "factor": 1 / 0.6}
    return {
        "max_pool2d": (pool2d_launch.config_max_pool2d(shape, win), {"x": image}, pool),
        "max_pool2d_backward": (
            pool2d_launch.config_max_pool2d_backward(shape, win),
            {"dy": pooled, "argmax": rng.integers(0, 9, pooled.shape).astype(np.uint8)},
            {"dx": (inside, F4)},
        ),
        "bias_relu_max_pool2d": (
            pool2d_launch.config_bias_relu_max_pool2d(shape, window(2, 2), True),
            {"x": image, "b": floats(6)},
            {"y": (halved.shape, F4), "argmax": (halved.shape, np.uint8)},
        ),
        "bias_relu_max_pool2d_backward": (
            pool2d_launch.config_bias_relu_max_pool2d_backward(shape, window(2, 2)),
            {
                "dy": halved,
                "y": halved[::-1],
                "argmax": rng.integers(0, 4, halved.shape).astype(np.uint8),
            },
            {"dx": (inside, F4)},
        ),
        "avg_pool2d": (
            pool2d_launch.config_avg_pool2d(shape, win),
            {"x": image},
            {"y": (pooled.shape, F4)},
        ),
        "avg_pool2d_backward": (
            pool2d_launch.config_avg_pool2d_backward(shape, win),
            {"dy": pooled},
            {"dx": (inside, F4)},
        ),
        "softmax": (rows("softmax_forward", 40, 7), {"x": scores}, {"y": (scores.shape, F4)}),
        "softmax_backward": (
            rows("softmax_backward", 40, 7),
            {"dy": scores, "y": abs(scores)},
            {"dx": (scores.shape, F4)},
        ),
        "cross_entropy": (
            softmax_launch.config_loss("cross_entropy_forward", 40, 7, "int32"),
            {"scores": scores, "labels": labels, "weight": scores},
            kept,
            smooth,
        ),
        "transpose": (layout.config_transpose(3, 143, 6), {"x": image}, {"y": ((3, 6, 143), F4)}),
        "relu": (each("relu.cu", "relu_forward", 5001), {"x": flat}, {"y": ((5001,), F4)}),
        "tanh": (each("activations.cu", "tanh_forward", 5001), {"x": flat}, {"y": ((5001,), F4)}),
        "dropout": (
            each("elementwise.cu", "dropout", 5001),
            {"x": flat},
            {"y": ((5001,), F4)},
            dropped,
        ),
        "image_batch": (
            config_image_batch((40, 3, 5, 8), (50, 3, 7, 6), "uint8", 1, 40),
            {
                "images": rng.integers(0, 256, (50, 3, 7, 6)).astype(np.uint8),
                "labels": np.arange(50),
                "table": np.array(
                    [[n, (n % 3 << 16) - 1, 7 << 16, 6 << 16] for n in range(40)], np.int32
                ),
                "values": floats(3, 256),
                "slot": np.zeros(1, np.uint32),
            },
            {"x": ((40, 5, 8, 3), F4), "batch_labels": ((40,), np.int64)},
            {"first": 0},
        ),
        "depthwise": (
            conv2d_launch.config_forward(deep, False, True),
            {"x": image, "w": floats(6, 3, 3), "b": floats(6)},
            {"y": (inside, F4)},
        ),
        "depthwise_backward_data": (
            conv2d_launch.config_backward_data(deep, False),
            {"dy": image, "w": floats(6, 3, 3), "x": image},
            {"dx": (inside, F4)},
        ),
        "depthwise_backward_weight": (
            conv2d_launch.config_backward_weight(deep),
            wide,
            {"dw": ((6, 3, 3, 1), F4)},
        ),
        "backward_bias": (
            conv2d_launch.config_backward_bias(429, 6),
            {"dy": image.reshape(429, 6)},
            {"db": ((6,), F4)},
        ),
    }


CASES = cases()


def contents(found):
    return {name: a.tobytes() for name, a in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_order_gives_the_same_bytes(name):
    first, *others = (contents(run(*CASES[name], order=o, seed=s)) for o, s in ORDERS)
    for other in others:
        assert other == first


# The others' blocks have pixels or filters of their own: their configurations fix the grid.
LOOPING = [name for name in CASES if name not in ("backward_bias", "depthwise_backward_weight")]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_check_passes_in_every_order(name):
    """No access outside its array, of memory that was never written, or that races."""
    for order, seed in ORDERS[1:]:
        run(*CASES[name], order=order, seed=seed, check=True)


@pytest.mark.parametrize("name", LOOPING)
def test_any_grid_is_correct(name):
    """One block, or three, do what is meant for many: kernels that loop over a grid."""
    config, *rest = CASES[name]
    right = contents(run(config, *rest))
    for blocks in (1, 3):
        small = [replace(one, grid=(min(blocks, one.grid[0]), *one.grid[1:]))
                 for one in config.launches]  # fmt: skip
        assert contents(run(LaunchConfig(tuple(small), config.workspace), *rest)) == right


@pytest.mark.parametrize("kernel", ["sgd", "sgd_momentum", "adam", "adam_amsgrad", "average"])
def test_optimisers_repeat_bit_for_bit(kernel):
    scalars = {
        "sgd": {"lr": 0.1, "decay": 0.01},
        "sgd_momentum": {"lr": 0.1, "decay": 0.01, "momentum": 0.9, "share": 0.1, "nesterov": 1},
        "adam": {"keep": 0.9, "decay": 0.1, "share1": 0.1, "beta2": 0.9, "share2": 0.1,
                 "eps": 1e-8, "step_size": 0.1, "root": 0.9},
        "average": {"share": 0.1},
    }[kernel.removesuffix("_amsgrad")]  # fmt: skip
    arrays = [[abs(floats(n)) for _ in range(5)] for n in (5, 4096, 9001)]
    found = set()
    for _ in range(2):
        tensors = Tensors(arrays, misaligned=False)
        tensors.step(kernel, **scalars)
        found.add(b"".join(a.tobytes() for slot in (0, 2, 3, 4) for a in tensors.values(slot)))
    assert len(found) == 1
