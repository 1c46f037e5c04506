"""Launch configurations of fully connected layers of few rows (kernels/linear_small.cu).

None says that the kernels do not apply; then a linear layer is a convolution of one pixel.
"""

from __future__ import annotations

from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
    INT_MAX,
    MAX_SHARED,
    THREADS,
    Launch,
    LaunchConfig,
    ceil_div,
    defines,
    vector_width,
)

FILE = "linear_small.cu"
MAX_ROWS = 1024  # beyond, the tiles of conv_simt.cu are many
MAX_WEIGHTS = 1 << 18  # of a chain: every block reads them
MAX_LAYERS = 4
CHAIN_THREADS = 512
PROCESSORS = 132  # an H100's: for so many blocks rows are divided, where there are as many
TILE_ROWS, TILE_COLUMNS = 16, 32


def applies(rows: int, features: tuple[int, ...]) -> bool:
    """Whether the kernels serve layers of these features in, between and out."""
    return (
        0 < rows <= MAX_ROWS
        and 1 < len(features) <= MAX_LAYERS + 1
        and sum(a * b for a, b in zip(features[1:], features, strict=False)) <= MAX_WEIGHTS
        and _shared(1, features) <= MAX_SHARED
        and min(features) > 0
        and rows * max(features) < INT_MAX // 2
    )


@lru_cache(maxsize=CACHED)
def config_chain(
    rows: int, features: tuple[int, ...], biases: tuple[bool, ...], relus: tuple[bool, ...]
) -> LaunchConfig:
    """y0, y1, ... from x, w0, b0, w1, b1, ... of layers that `applies` allows.

    Give any array for a bias that is not there, and for what belongs to layers beyond the last.
    """
    images = next(n for n in (1, 2, 4) if rows <= n * PROCESSORS or n == 4)
    while _shared(images, features) > MAX_SHARED:
        images //= 2
    layers, flags = len(features) - 1, zip(biases, relus, strict=True)
    scalars = {"rows": rows, "layers": layers, "widest": _widest(features)}
    scalars |= {f"f{i}": features[min(i, layers)] for i in range(MAX_LAYERS + 1)}
    scalars |= {"biases": 0, "rectified": 0}
    sizes: dict[str, int | None] = {"x": rows * features[0]}
    sizes |= {f"{name}{i}": None for name in "ywb" for i in range(MAX_LAYERS)}
    for i, (bias, relu) in enumerate(flags):
        scalars["biases"] |= int(bias) << i
        scalars["rectified"] |= int(relu) << i
        sizes[f"y{i}"] = rows * features[i + 1]
        sizes[f"w{i}"] = features[i + 1] * features[i]
        sizes[f"b{i}"] = features[i + 1] if bias else None
    launch = Launch(
        *(FILE, "linear_chain_forward", (ceil_div(rows, images), 1, 1), CHAIN_THREADS),
        *(defines(IMAGES=images, VEC=1), scalars, sizes),
        shared=_shared(images, features),
        multiply_adds=rows * sum(features[i] * features[i + 1] for i in range(layers)),
    )
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_backward(
    rows: int, features_in: int, features_out: int, bias: bool, mask: bool, need_dx: bool
) -> LaunchConfig:
    """dx, dw and db from dy, y, x and w.

    mask: whether dy is 0 where y is not positive; else give dy for y. Give dw's stand-in for dx
    without need_dx, for db without bias.
    """
    across = ceil_div(features_in, TILE_COLUMNS)
    data_blocks = ceil_div(rows, TILE_ROWS) * across * need_dx
    blocks = data_blocks + ceil_div(features_out, TILE_ROWS) * across
    scalars = {
        **{"rows": rows, "in": features_in, "out": features_out, "data_blocks": data_blocks},
        **{"tiles_across": across, "use_mask": int(mask), "use_bias": int(bias)},
    }
    x, y, w = rows * features_in, rows * features_out, features_out * features_in
    sizes = {
        **{"dx": x if need_dx else None, "dw": w, "db": features_out if bias else None},
        **{"dy": y, "y": y if mask else None, "x": x, "w": w if need_dx else None},
    }
    launch = Launch(
        *(FILE, "linear_small_backward", (blocks, 1, 1), THREADS),
        *(defines(IMAGES=1, VEC=vector_width(features_in)), scalars, sizes),
        multiply_adds=(1 + need_dx) * rows * w,
    )
    return LaunchConfig((launch,))


def _widest(features: tuple[int, ...]) -> int:
    return 4 * max(ceil_div(n, 4) for n in features)


def _shared(images: int, features: tuple[int, ...]) -> int:
    """Bytes for the inputs of a layer and of the next."""
    return 4 * 2 * images * _widest(features)
