"""Batch norm, ReLU and max-pool in one pass have the bits of the three by themselves, whose kernels
other tests hold to their definitions.
"""

import numpy as np
import pytest
from kernel_runs import F4, how_of, last, run

from gpuconv.cuda.launch_config import vector_width
from gpuconv.ops import batch_norm2d_launch, pool2d_launch
from gpuconv.shapes import window

EPS = {"eps": 1e-3}


def case(seed):
    """x (N, C, H, W), a pixel stride, a window, and parameters by name, None without."""
    rng = np.random.default_rng([55, seed])
    C = int(rng.choice([1, 3, 4, 8, 12, 33, 64, 132]))
    sizes = rng.integers(1, 4), *rng.integers(4, 12, 2)
    if seed % 4 == 0:  # pixels for several parts
        C, sizes = min(C, 8), (3, 19, 23)
    shape = (int(sizes[0]), C, *(int(n) for n in sizes[1:]))
    x = rng.standard_normal(shape).astype(F4)
    x[rng.random(shape) < 0.1] = 0.5  # equal values: the first is the largest
    if seed % 5 == 0:
        x.reshape(-1)[3] = np.nan
    kernel, stride, pad = ((3, 2, 1), (2, 2, 0), (3, 1, 1), ((2, 3), (3, 2), 1))[seed % 4]
    win = window(kernel, stride, pad, 1 + (seed == 6), seed % 3 == 1)
    given = {"mean": rng.standard_normal(C).astype(F4), "var": rng.random(C).astype(F4) + F4(0.1)}
    w, b = rng.standard_normal((2, C)).astype(F4)
    given["w"], given["b"] = w if seed % 3 else None, b if seed % 2 else None
    return x, win, given, rng


def compare(number, **how):
    x, win, given, rng = case(number)
    N, C, H, W = x.shape
    flags = given["w"] is not None, given["b"] is not None
    arrays = {name: given["mean"] if a is None else a for name, a in given.items()}
    stride, vec = C, vector_width(C)
    image = (N, H, W, C)
    pooled = (N, *win.output_size(H, W), C)
    tap = np.dtype(win.tap_type)
    norm = batch_norm2d_launch.config_forward(x.shape, stride, vec, *flags, True)
    z = run(norm, {"x": last(x), **arrays}, {"y": (image, F4)}, EPS)["y"]
    both = {"y": (pooled, F4), "argmax": (pooled, tap)}
    right = run(pool2d_launch.config_max_pool2d(x.shape, win), {"x": z}, both)
    config = batch_norm2d_launch.config_pooled(x.shape, win, stride, vec, *flags)
    found = run(config, {"x": last(x), **arrays}, both, EPS, **how)
    for name in both:
        np.testing.assert_array_equal(found[name], right[name])

    dy = rng.standard_normal(pooled).astype(F4)
    back = {"dy": dy, "argmax": right["argmax"]}
    config = pool2d_launch.config_max_pool2d_backward(x.shape, win)
    spread = run(config, back, {"dx": (image, F4)})["dx"]
    channels = {"dw": ((C,), F4), "db": ((C,), F4)}
    key = x.shape, C, stride, vec, *flags, True
    inputs = {"x": last(x), **arrays}
    config = batch_norm2d_launch.config_backward_sums(*key)
    found = run(config, {"dy": spread, **inputs}, channels, EPS)
    sums = {name: found[name] for name in channels}
    config = batch_norm2d_launch.config_pooled_sums(x.shape, win, stride, vec, *flags)
    found = run(config, {**back, **inputs}, channels, EPS, **how)
    for name in channels:
        np.testing.assert_array_equal(found[name], sums[name])
    for of_batch in (True, False):
        config = batch_norm2d_launch.config_backward(*key, of_batch)
        dx = run(config, {"dy": spread, **inputs, **sums}, {"dx": (image, F4)}, EPS)["dx"]
        config = batch_norm2d_launch.config_pooled_backward(
            x.shape, win, stride, vec, *flags, of_batch
        )
        inside = run(config, {**back, **inputs, **sums}, {"dx": (image, F4)}, EPS, **how)["dx"]
        np.testing.assert_array_equal(inside, dx)


@pytest.mark.parametrize("seed", range(8))
def test_the_bits_of_three_kernels(seed):
    compare(seed, **how_of(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 80))
def test_the_bits_of_three_kernels_at_length(seed):
    compare(seed, **how_of(seed))
