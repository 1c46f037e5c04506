"""Launch configurations of filters that connect some pairs of channels (kernels/partial.cu)."""

from __future__ import annotations

from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
    THREADS,
    Launch,
    LaunchConfig,
    loop_grid,
    require_int32,
)


@lru_cache(maxsize=CACHED)
def config_forward(K: int, C: int, taps: int, links: int) -> LaunchConfig:
    """w (K, taps, C) from links (links, taps) and table (K, C), int32."""
    count = K * taps * C
    require_int32("partial_filters", filter_elements=count)
    scalars = {"count": count, "taps": taps, "C": C, "number": links}
    sizes = {"w": count, "links": links * taps, "table": K * C}
    return _loop("partial_filters_forward", scalars, sizes)


@lru_cache(maxsize=CACHED)
def config_backward(K: int, C: int, taps: int, links: int) -> LaunchConfig:
    """dlinks (links, taps) from dw (K, taps, C) and places (links), int32."""
    scalars = {"count": links * taps, "taps": taps, "C": C, "pairs": K * C}
    sizes = {"dlinks": links * taps, "dw": K * C * taps, "places": links}
    return _loop("partial_filters_backward", scalars, sizes)


def _loop(kernel: str, scalars: dict[str, int], sizes: dict[str, int]) -> LaunchConfig:
    grid = loop_grid(scalars["count"])
    return LaunchConfig((Launch("partial.cu", kernel, grid, THREADS, (), scalars, sizes),))
