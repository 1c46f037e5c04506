"""Launch configurations: figures at sizes that no test could allocate, the limits of each
architecture, and that they are cached by shapes.
"""

from dataclasses import replace

import numpy as np
import pytest

from gpuconv.cuda import launch_config, layout, source, split_k, step_launch
from gpuconv.cuda.launch_config import config_elementwise
from gpuconv.data.on_device import config_image_batch
from gpuconv.ops import (
    batch_norm2d_launch,
    conv2d_launch,
    conv2d_launch_mma,
    linear_launch,
    pool2d_launch,
    softmax_launch,
)
from gpuconv.ops import conv2d_launch_small as small
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.ops.local_response_norm import (
    config_local_response_norm,
    config_local_response_norm_backward,
)
from gpuconv.optim.device import (
    chunks,
    config_clip,
    config_numbers,
    config_optimizer,
    config_unscale,
)
from gpuconv.shapes import window


def conv(x_shape, K, kernel, groups=1, **geometry):
    w_shape = (K, x_shape[1] // groups, *kernel)
    return Conv2dShape.of(x_shape, w_shape, window(kernel, **geometry), groups)


CONVS = {
    "lenet 1": conv((32, 1, 32, 32), 6, (5, 5)),
    "lenet 2": conv((32, 6, 14, 14), 16, (5, 5)),
    "resnet": conv((256, 64, 56, 56), 64, (3, 3), padding=1),
    "resnet 7x7": conv((256, 3, 224, 224), 64, (7, 7), padding=3, stride=2),
    "wide": conv((256, 512, 7, 7), 2048, (1, 1)),
    "grouped": conv((64, 96, 27, 27), 256, (5, 5), groups=2, padding=2),
    "depthwise": conv((256, 144, 56, 56), 144, (3, 3), groups=144, padding=1),
    "linear": Conv2dShape.linear(128, 9216, 4096),
    "one": conv((1, 1, 1, 1), 1, (1, 1)),
    "largest": conv((2047, 4, 1024, 1023), 4, (3, 3), padding=1),
}


def configs_of(c):
    yield conv2d_launch.config_forward(c, True, True)
    yield conv2d_launch.config_backward_data(c, False)
    yield conv2d_launch.config_backward_data(c, True, True)
    if conv2d_launch.moment_parts(c):
        yield conv2d_launch.config_forward(c, False, False, True)
    yield conv2d_launch.config_backward_weight(c)
    yield conv2d_launch.config_backward_bias(c.N * c.P * c.Q, c.K)


def small_configs(rows):
    """Of layers of few filters and features."""
    conv, pool = Conv2dShape(rows, 6, 14, 14, 16, 5, 5, 10, 10), small.Pooled(5, 5)
    yield small.config_forward(conv, True, True, pool, True, False)
    yield small.config_backward(conv, True, True, pool, True, False, False, True)
    if linear_launch.applies(rows, (400, 120, 10)):
        yield linear_launch.config_chain(rows, (400, 120, 10), (True, False), (True, False))
        yield linear_launch.config_backward(rows, 400, 120, True, True, True)
        yield softmax_launch.config_loss_and_gradient(rows, 10, "int64")


def channel_configs(shape):
    C, flags = shape[1], (True, False, True)
    vec = 1 if C % 4 else 4
    yield layout.config_channels("copy_channels", shape, 2**31 - 1, C, 1)
    yield layout.config_channels("add_channels", shape, C, C, vec)
    yield batch_norm2d_launch.config_statistics(shape, C + 8, vec)
    yield batch_norm2d_launch.config_forward(shape, C + 8, vec, *flags)
    yield batch_norm2d_launch.config_forward(shape, C + 8, vec, *flags, C)
    yield batch_norm2d_launch.config_merge(shape[0] * shape[2] * shape[3], C, 64, True)
    yield batch_norm2d_launch.config_backward_sums(shape, C, C + 8, vec, *flags)
    yield batch_norm2d_launch.config_backward(shape, C, C + 8, vec, *flags, True)
    win = window(3, 2, 1)
    yield batch_norm2d_launch.config_pooled(shape, win, C + 8, vec, True, True)
    yield batch_norm2d_launch.config_pooled_sums(shape, win, C + 8, vec, True, False)
    yield batch_norm2d_launch.config_pooled_backward(shape, win, C, vec, True, True, False)
    yield batch_norm2d_launch.config_track(C)
    yield pool2d_launch.config_adaptive_avg_pool2d(shape, (1, 1))
    yield pool2d_launch.config_adaptive_avg_pool2d(shape, (7, 6))
    yield pool2d_launch.config_adaptive_avg_pool2d_backward(shape, (7, 6))
    yield config_local_response_norm(shape, 5)
    yield config_local_response_norm_backward(shape, 5)


def all_configs():
    for c in CONVS.values():
        yield from configs_of(c)
    for rows in (1, 64, 512, 2**15):
        yield from small_configs(rows)
    for shape in ((32, 6, 28, 28), (256, 64, 112, 112), (2**15, 5, 255, 256), (1, 1030, 7, 7)):
        win = window(3, 2, 1, 1, True)
        yield pool2d_launch.config_max_pool2d(shape, win)
        yield pool2d_launch.config_max_pool2d_backward(shape, win)
        yield pool2d_launch.config_bias_relu_max_pool2d(shape, window(2, 2), True)
        yield pool2d_launch.config_bias_relu_max_pool2d_backward(shape, window(2, 2))
        yield pool2d_launch.config_avg_pool2d(shape, win)
        yield pool2d_launch.config_avg_pool2d_backward(shape, win, False)
        yield from channel_configs(shape)
    for file in source.files():
        if '"elementwise.cuh"' not in (source.folder() / file).read_text():
            continue
        for kernel in source.names(file):
            for count in (1, 1000, 2**31, 2**40):
                yield config_elementwise(file, kernel, count, count != 1000)
    for way in ("forward", "backward"):
        yield softmax_launch.config_rowwise(f"softmax_{way}", 2**31 - 1, 10)
    for name in ("cross_entropy", "half_squared_error", "hinge"):
        yield softmax_launch.config_loss(f"{name}_forward", 2**31 - 1, 10, "int64", True)
        yield softmax_launch.config_loss_backward(f"{name}_backward", 2**31 - 1, 10, "uint8")
    yield layout.config_transpose(2**20, 2**16 - 1, 1000)
    for kernel in ("sgd", "sgd_momentum", "adam", "adam_amsgrad", "average"):
        yield config_optimizer(kernel, 2**31 - 1, 100)
    yield config_clip(2**31 - 1, 100)
    yield config_unscale(2**31 - 1, 100, 2000)
    for kernel in ("adam_numbers", "momentum_numbers"):
        yield config_numbers(kernel)
    for form in conv2d_launch_mma.FORMATS.values():
        shape = conv((64, 64, 56, 56), 128, (3, 3), padding=1)
        yield conv2d_launch_mma.config_filters(shape, form, False)
        yield conv2d_launch_mma.config_filters(shape, form, True)
        yield conv2d_launch_mma.config_forward(shape, form, True, True, False)
        yield conv2d_launch_mma.config_backward_data(shape, form, False, False)
        yield conv2d_launch_mma.config_backward_weight(shape, form, (64, 128), True)
        strides = (3 * 56 * 56, 56 * 56, 56, 1)
        yield conv2d_launch_mma.config_pad(
            (64, 3, 56, 56), strides, 64 * 3 * 56 * 56, 1, form, "float"
        )
    yield step_launch.config_note_batch(2**24, 2**16, "long long", 64, (256, 512))
    yield step_launch.config_note_loss(7, 64)
    for shape, dtype in (((512, 3, 224, 224), "uint8"), ((7, 1, 5, 5), "float32")):
        yield config_image_batch(shape, (2**31 - 1, *shape[1:]), dtype, 64, 512)


@pytest.mark.parametrize("launches", [config.launches for config in all_configs()])
def test_every_launch_fits_every_architecture_and_its_signature(launches):
    for launch in launches:
        for limits in launch_config.LIMITS.values():
            launch_config.require_fits(launch, limits)
        signature = source.kernels(launch.file, launch.defines)[launch.kernel]
        scalars = {p.name: p.dtype for p in signature.parameters if not p.pointer}
        # what a call gives is never a count: it has no part in a grid or a size
        assert not [n for n in set(scalars) - set(launch.scalars) if scalars[n].kind == "i"
                    and n not in ("nesterov", "ignore", "first", "seed_count",
                                  "number_count")]  # fmt: skip
        for name, value in launch.scalars.items():
            assert isinstance(value, int), name
            assert np.iinfo(scalars[name]).min <= value <= np.iinfo(scalars[name]).max, name
        pointers = {p.name for p in signature.parameters if p.pointer}
        assert set(launch.arrays) <= pointers
        assert pointers <= set(launch.sizes)


def test_every_kernel_is_launched_by_a_configuration():
    launched = {launch.kernel for config in all_configs() for launch in config.launches}
    assert launched == {name for file in source.files() for name in source.names(file)}


def test_fast_division_divides_every_number():
    rng = np.random.default_rng(0)
    divisors = [
        *range(1, 200),
        2**30,
        2**30 + 1,
        2**31 - 1,
        2**31 - 2,
        *rng.integers(1, 2**31, 200),
    ]
    for d in map(int, divisors):
        mul, shift = launch_config.fast_division(d)
        assert mul < 2**32
        assert shift < 64
        near = [n for q in (0, 1, 2, (2**31 - 1) // d) for n in (q * d - 1, q * d, q * d + 1)]
        for n in [*near, 2**31 - 1, *map(int, rng.integers(0, 2**31, 20))]:
            if 0 <= n < 2**31:
                assert n * mul >> shift == n // d, (n, d)
    for d in (0, -1, 2**31):
        with pytest.raises(ValueError, match="divisor"):
            launch_config.fast_division(d)


@pytest.mark.parametrize("name", CONVS)
def test_tiles_cover_the_result(name):
    c = CONVS[name]
    if c.depthwise:
        return
    (forward,) = conv2d_launch.config_forward(c, True, False).launches
    if forward.file == "conv_few_channels.cu":
        blocks, down, tiles = (forward.scalars[n] for n in ("blocks", "tiles_h", "tiles_w"))
        lanes = int(dict(forward.defines)["LANES"])
        assert blocks * 8 * lanes >= c.K > (blocks - 1) * 8 * lanes
        assert down * 32 // lanes >= c.P > (down - 1) * 32 // lanes
        assert tiles * 32 >= c.Q > (tiles - 1) * 32
        assert forward.grid == (c.N * down * tiles * blocks, 1, 1)
        return
    tile, wide = (int(dict(forward.defines)[name]) for name in ("TILE", "TILE_N"))
    across = forward.scalars["tiles_across"]
    assert across * wide >= c.filters > (across - 1) * wide
    down = forward.grid[0] // across
    assert down * tile >= c.N * c.P * c.Q > (down - 1) * tile
    assert forward.grid[1] == c.groups


@pytest.mark.parametrize("name", CONVS)
def test_slices_cover_the_pixels_and_none_is_too_long(name):
    c = CONVS[name]
    weight = conv2d_launch.config_backward_weight(c)
    first = weight.launches[0]
    slices = first.grid[1 if c.depthwise else 2]
    length, pixels = first.scalars["split_length"], c.N * c.P * c.Q
    if first.file == "conv_few_channels.cu":  # in segments of up to 32 pixels
        assert first.scalars["segments"] == c.N * c.P * launch_config.ceil_div(c.Q, 32)
        length, pixels = 32 * length, 32 * first.scalars["segments"]
    assert length % 16 == 0
    assert slices * length >= pixels > (slices - 1) * length
    assert length <= max(
        split_k.MAX_SPLIT, launch_config.ceil_div(pixels, launch_config.MAX_GRID_YZ) + 16
    )
    size = c.K * c.R * c.S * c.channels
    if first.file == "conv_simt_weight.cu":  # in whole tiles
        tile = dict(first.defines)
        size = first.grid[0] * c.groups * int(tile["TILE"]) * int(tile["TILE_N"])
    assert weight.workspace == (slices * size if slices > 1 else 0)


def test_vectors_only_where_every_access_is_aligned():
    def macros(p):
        return dict(p.launches[0].defines)

    odd = conv((8, 6, 9, 9), 8, (3, 3))
    assert macros(conv2d_launch.config_forward(odd, True, False))["VEC_A"] == "1"
    assert macros(conv2d_launch.config_forward(odd, True, False))["VEC_OUT"] == "4"
    assert macros(conv2d_launch.config_backward_data(odd, False))["VEC_A"] == "4"
    assert macros(conv2d_launch.config_backward_data(odd, False))["VEC_B"] == "1"
    grouped = conv((8, 12, 9, 9), 16, (3, 3), groups=2)  # 12 channels, but 6 a group
    assert macros(conv2d_launch.config_forward(grouped, True, False))["VEC_A"] == "1"
    assert macros(conv2d_launch.config_backward_weight(grouped))["VEC_OUT"] == "1"


def test_the_window_mask_is_left_where_it_does_not_fit():
    for kernel, bits in (((16, 15), "1"), ((17, 1), "0"), ((1, 16), "0")):
        c = conv((1, 8, 40, 40), 8, kernel)
        assert (
            dict(conv2d_launch.config_forward(c, True, False).launches[0].defines)["WINDOW_BITS"]
            == bits
        )


@pytest.mark.parametrize("shape", [(256, 64, 112, 112), (1, 5, 3, 3), (8, 2048, 7, 7)])
def test_slices_of_statistics_cover_the_pixels(shape):
    N, C, H, W = shape
    found = batch_norm2d_launch.config_statistics(shape, C, 1 if C % 4 else 4)
    first, merge = found.launches
    number, length = first.grid[1], first.scalars["split_length"]
    assert number * length >= N * H * W > (number - 1) * length
    assert merge.scalars["splits"] == number
    assert found.workspace == 4 * number * C
    lanes = first.scalars["lanes"] * int(dict(first.defines)["VEC"])
    assert first.grid[0] * lanes >= C > (first.grid[0] - 1) * lanes


def test_equal_shapes_give_the_same_object():
    for one, other in zip(all_configs(), all_configs(), strict=True):
        assert one is other
    conv2d_launch.config_forward.cache_clear()
    c = CONVS["resnet"]
    first = conv2d_launch.config_forward(c, True, True)
    assert first == conv2d_launch.config_forward.__wrapped__(replace(c), True, True)
    assert first is conv2d_launch.config_forward(replace(c), True, True)
    assert first is not conv2d_launch.config_forward(c, True, False)


@pytest.mark.parametrize(
    ("c", "text"),
    [
        (conv((2**16, 4, 182, 182), 4, (1, 1)), "output pixels are 21"),
        (conv((2**12, 3, 512, 512), 4, (1, 1), stride=2), "vectors of x are"),
        (Conv2dShape(1, 70000, 2, 2, 140000, 1, 1, 2, 2, groups=70000), "70000 groups"),
    ],
)
def test_what_32_bits_do_not_hold_is_refused(c, text):
    with pytest.raises(ValueError, match=f"conv2d: {text}"):
        conv2d_launch.config_forward(c, True, False)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda s: batch_norm2d_launch.config_statistics(s, 4, 4), "batch_norm2d: pixels are 2"),
        (lambda s: layout.config_channels("copy_channels", s, 4, 4, 4), "copy_channels: pixels"),
        (pool2d_launch.config_global_avg_pool2d, "adaptive_avg_pool2d: pixels are 2"),
        (
            lambda s: pool2d_launch.config_adaptive_avg_pool2d((1, 4, 2**12, 1), (2**20, 2)),
            "adaptive_avg_pool2d: rows are 4",
        ),
        (lambda s: config_local_response_norm(s, 5), "local_response_norm: pixels"),
    ],
)
def test_more_pixels_than_32_bits_hold_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make((2**16, 4, 2**8, 2**7))


def test_a_filter_past_shared_memory_is_refused():
    c = conv((1, 2, 130, 130), 2, (128, 128), groups=2)
    with pytest.raises(NotImplementedError, match="do not fit 49152 bytes of shared memory"):
        conv2d_launch.config_forward(c, True, False)


def test_a_launch_past_a_limit_is_refused():
    (launch,) = config_elementwise("relu.cu", "relu_forward", 8).launches
    for change, text in (
        ({"grid": (1, 65536, 1)}, "relu_forward: a grid of 1 x 65536 x 1"),
        ({"block": 2048}, "2048 threads a block, 1 to 1024"),
        ({"shared": 100 << 10}, "102400 bytes of shared memory a block, this card has 65536"),
    ):
        with pytest.raises(ValueError, match=text):
            launch_config.require_fits(replace(launch, **change), launch_config.LIMITS["sm_75"])


def test_chunks_cover_every_tensor():
    owner, part = chunks([1, 4096, 4097, 0, 9000])
    assert owner == [0, 1, 2, 2, 4, 4, 4]
    assert part == [0, 0, 0, 1, 0, 1, 2]


def test_labels_of_another_type_are_refused():
    with pytest.raises(TypeError, match="cross_entropy: labels must be integers, got float32"):
        softmax_launch.config_loss("cross_entropy_forward", 4, 10, "float32")
