"""Kernels on the simulator with and without its checks, for before_after.py --checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

SGEMM = """
extern "C" __global__ void k(const float* a, const float* b, float* c, int n)
{
    __shared__ float As[16][16], Bs[16][16];
    const int x = threadIdx.x, y = threadIdx.y;
    const int row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    float sum = 0;
    for (int t = 0; t < n; t += 16) {
        As[y][x] = a[row * n + t + x];
        Bs[y][x] = b[(t + y) * n + column];
        __syncthreads();
        for (int i = 0; i < 16; ++i) sum += As[y][i] * Bs[i][x];
        __syncthreads();
    }
    c[row * n + column] = sum;
}"""
CONVOLUTION = """
extern "C" __global__ void k(const float* x, const float* w, float* y, int C, int H, int W, int K)
{
    const int q = blockIdx.x * blockDim.x + threadIdx.x, p = blockIdx.y, k = blockIdx.z;
    if (q >= W - 2) return;
    float sum = 0;
    for (int c = 0; c < C; ++c)
        for (int r = 0; r < 3; ++r)
            for (int s = 0; s < 3; ++s)
                sum += x[(c * H + p + r) * W + q + s] * w[((k * C + c) * 3 + r) * 3 + s];
    y[(k * (H - 2) + p) * (W - 2) + q] = sum;
}"""
AXPY = """
extern "C" __global__ void k(float* y, const float* x, float a, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}"""
HISTOGRAM = """
extern "C" __global__ void k(const int* x, int* counts, int n)
{
    __shared__ int bins[64];
    if (threadIdx.x < 64) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&bins[x[i] & 63], 1);
    __syncthreads();
    if (threadIdx.x < 64) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}"""


def sgemm(check: bool) -> Callable[[], object]:
    from gpuconv import sim

    a, b, c = (sim.asarray(np.ones((256, 256), np.float32)) for _ in range(3))
    launch = partial(sim.Module(SGEMM, check=check).launch, "k", (16, 16), (16, 16))
    return partial(launch, (a, b, c, 256))


def convolution(check: bool) -> Callable[[], object]:
    from gpuconv import sim

    x, w = (sim.asarray(np.ones(n, np.float32)) for n in (16 * 34 * 66, 32 * 16 * 9))
    y = sim.zeros(32 * 32 * 64)
    launch = partial(sim.Module(CONVOLUTION, check=check).launch, "k", (1, 32, 32), 64)
    return partial(launch, (x, w, y, 16, 34, 66, 32))


def axpy(check: bool) -> Callable[[], object]:
    from gpuconv import sim

    n = 1 << 20
    x, y = sim.asarray(np.ones(n, np.float32)), sim.zeros(n)
    return partial(sim.Module(AXPY, check=check).launch, "k", n // 256, 256, (y, x, 0.5, n))


def histogram(check: bool) -> Callable[[], object]:
    from gpuconv import sim

    n = 1 << 19
    x = sim.asarray(np.random.default_rng(0).integers(0, 64, n).astype(np.int32))
    counts = sim.zeros(64, np.int32)
    return partial(sim.Module(HISTOGRAM, check=check).launch, "k", 64, 256, (x, counts, n))


def framework_convolution() -> Callable[[], object]:
    """The framework's own kernels, checked: a convolution's forward pass."""
    from gpuconv import ops, to_device

    try:
        from gpuconv.cuda.runtime import runtime
    except ImportError:  # 0.1
        from gpuconv.runtime.runtime import runtime
    runtime("sim").check = True
    rng = np.random.default_rng(0)
    x = to_device(rng.standard_normal((8, 16, 24, 24), np.float32), "sim")
    w = to_device(rng.standard_normal((32, 16, 3, 3), np.float32), "sim")
    b = to_device(rng.standard_normal(32, np.float32), "sim")
    return partial(ops.conv2d, x, w, b, 1, 1)


CASES = {
    "SGEMM 256^3": sgemm,
    "direct convolution": convolution,
    "axpy": axpy,
    "shared atomics": histogram,
}


def rows() -> dict[str, Callable[[], Callable[[], object]]]:
    """What makes each row's call, by name: every kernel with and without the checks."""
    timed = {
        f"{name}, {word}": partial(make, check)
        for name, make in CASES.items()
        for word, check in (("unchecked", False), ("checked", True))
    }
    return timed | {"convolution, checked": framework_convolution}
