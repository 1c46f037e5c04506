"""Launch configurations of local response normalisation (kernels/lrn.cu).

The kernels also take the numbers a, beta and k, backward slope besides, which no shape decides.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
    MAX_SHARED,
    THREADS,
    Launch,
    LaunchConfig,
    defines,
    pixel_loop,
    vector_width,
)
from gpuconv.cuda.layout import Shape, require_channels


@lru_cache(maxsize=CACHED)
def config_forward(shape: Shape, size: int) -> LaunchConfig:
    """y from x, (N, H, W, C); shape is (N, C, H, W), size the channels of a window."""
    return LaunchConfig((_launch("local_response_norm_forward", shape, size, ("y", "x")),))


@lru_cache(maxsize=CACHED)
def config_backward(shape: Shape, size: int) -> LaunchConfig:
    """dx from dy and x, (N, H, W, C)."""
    name, C = "local_response_norm_backward", shape[1]
    launch = _launch(name, shape, size, ("dx", "dy", "x"))
    rows = THREADS // launch.scalars["lanes"]
    shared = rows * 2 * C * 4
    if shared > MAX_SHARED:
        raise NotImplementedError(
            f"{name}: two rows of {C} channels do not fit {MAX_SHARED} bytes of shared memory; "
            f"at most {MAX_SHARED // 8} channels do: use cpu"
        )
    return LaunchConfig((replace(launch, shared=shared),))


def _launch(kernel: str, shape: Shape, size: int, arrays: tuple[str, ...]) -> Launch:
    pixels, C = require_channels(kernel.removesuffix("_forward"), shape)
    vec = vector_width(C)
    grid, lanes = pixel_loop(pixels, C, vec)
    window = {"below": min(size // 2, C), "above": min((size - 1) // 2, C)}
    scalars = {"pixels": pixels, "lanes": lanes, "C": C, **window}
    sizes = dict.fromkeys(arrays, pixels * C)
    return Launch("lrn.cu", kernel, grid, THREADS, defines(VEC=vec), scalars, sizes)
