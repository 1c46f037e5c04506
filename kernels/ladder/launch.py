"""Launches a rung of the ladder (docs/ladder.md) and compares its product with NumPy's in float64.

gpuconv check-kernels kernels/ladder/tiled.cu --launch kernels/ladder/launch.py --count
"""

from pathlib import Path

import numpy as np

M, N, K = 128, 256, 192
FMA = M * N * K
FLOP = 2 * FMA
# Of each rung, in order: rows and columns of a block's tile of C, and its threads.
RUNGS = {
    "naive": (32, (32, 32)),
    "tiled": (32, (32, 32)),
    "vectorised": (32, (32, 32)),
    "cp_async": (32, (32, 32)),
    "register_blocked": (128, (16, 16)),
    "swizzled": (128, (16, 16)),
    "tensor_cores": (128, 128),
}


def launch(run):
    rung = Path(run.source.path).stem
    tile, threads = RUNGS[rung]
    rng = np.random.default_rng(13)
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((N, K), np.float32)
    c = run.empty((M, N))
    run(f"product_{rung}", grid=(N // tile, M // tile), block=threads, args=[c, a, b, N, K])

    left, right = a.astype(np.float64), b.astype(np.float64).T
    # A sum of K products in float32. TF32 leaves 10 bits of each operand's fraction.
    relative = K * 2.0**-24 / (1 - K * 2.0**-24)
    if rung == "tensor_cores":
        relative = (1 + 2 * relative) * (1 + 2.0**-10) ** 2 - 1
    assert (np.abs(c - left @ right) <= relative * (np.abs(left) @ np.abs(right))).all()
