"""Launch plans: figures at sizes that no test could allocate, and what each architecture allows."""

import numpy as np
import pytest

from gpuconv.cuda import (
    plan,
    plan_channels,
    plan_conv,
    plan_dense,
    plan_depthwise,
    plan_pool,
    plan_slices,
    source,
)
from gpuconv.cuda.plan_conv import Conv
from gpuconv.shapes import window


def conv(x_shape, K, kernel, groups=1, **geometry):
    w_shape = (K, x_shape[1] // groups, *kernel)
    return Conv.of(x_shape, w_shape, window(kernel, **geometry), groups)


CONVS = {
    "lenet 1": conv((32, 1, 32, 32), 6, (5, 5)),
    "lenet 2": conv((32, 6, 14, 14), 16, (5, 5)),
    "resnet": conv((256, 64, 56, 56), 64, (3, 3), padding=1),
    "resnet 7x7": conv((256, 3, 224, 224), 64, (7, 7), padding=3, stride=2),
    "wide": conv((256, 512, 7, 7), 2048, (1, 1)),
    "grouped": conv((64, 96, 27, 27), 256, (5, 5), groups=2, padding=2),
    "depthwise": conv((256, 144, 56, 56), 144, (3, 3), groups=144, padding=1),
    "linear": Conv.linear(128, 9216, 4096),
    "one": conv((1, 1, 1, 1), 1, (1, 1)),
    "largest": conv((2047, 4, 1024, 1023), 4, (3, 3), padding=1),
}


def plans_of(c):
    yield plan_conv.forward(c, True, True)
    yield plan_conv.backward_data(c, False)
    yield plan_conv.backward_weight(c)
    yield plan_conv.backward_bias(c.N * c.P * c.Q, c.K)


def channel_plans(shape):
    C, numbers = shape[1], {"eps": 1e-5, "use_weight": 1, "use_bias": 0}
    vec, pitches = 1 if C % 4 else 4, {"dy_pitch": C, "pitch": C + 8}
    yield plan_channels.channels("copy_channels", shape, 2**31 - 1, C, 1)
    yield plan_channels.batch_norm2d_statistics(shape, C + 8, vec)
    yield plan_channels.batch_norm2d(shape, C + 8, vec, numbers, True)
    yield plan_channels.batch_norm2d_sums(shape, pitches, vec, numbers, True)
    yield plan_channels.batch_norm2d_backward(shape, pitches, vec, numbers, True, True)
    yield plan_channels.batch_norm2d_track(C, 2**31 - 1, 0.1)
    yield plan_channels.adaptive_avg_pool2d(shape, (1, 1))
    yield plan_channels.adaptive_avg_pool2d(shape, (7, 6))
    yield plan_channels.adaptive_avg_pool2d_backward(shape, (7, 6))
    yield plan_channels.local_response_norm(shape, 5, 1e-4, 0.75, 2.0)
    yield plan_channels.local_response_norm_backward(shape, 5, 1e-4, 0.75, 2.0)
    yield plan_channels.partial_filters(C, C, 9, 2 * C)
    yield plan_channels.partial_filters_backward(C, C, 9, 2 * C)


def all_plans():
    for c in CONVS.values():
        yield from plans_of(c)
    for shape in ((32, 6, 28, 28), (256, 64, 112, 112), (2**15, 5, 255, 256), (1, 1030, 7, 7)):
        win = window(3, 2, 1, 1, True)
        yield plan_pool.max_pool2d(shape, win)
        yield plan_pool.max_pool2d_backward(shape, win)
        yield plan_pool.bias_relu_max_pool2d(shape, window(2, 2), True)
        yield plan_pool.bias_relu_max_pool2d_backward(shape, window(2, 2))
        yield plan_pool.avg_pool2d(shape, win)
        yield plan_pool.avg_pool2d_backward(shape, win, False)
        yield from channel_plans(shape)
    for count in (1, 1000, 2**31, 2**40):
        yield plan_dense.elementwise("relu.cu", "relu_forward", count)
        yield plan_dense.dropout(count, 0.5, 2**64 - 1, aligned=False)
    scalars = plan_dense.smoothing(0.1, 10)
    yield plan_dense.loss("cross_entropy_forward", 2**31 - 1, 10, "int64", **scalars)
    yield plan_dense.transpose(2**20, 2**16 - 1, 1000)


@pytest.mark.parametrize("launches", [p.launches for p in all_plans()])
def test_every_launch_fits_every_architecture_and_its_signature(launches):
    for launch in launches:
        for limits in plan.LIMITS.values():
            plan.require_fits(launch, limits)
        signature = source.kernels(launch.file, launch.defines)[launch.kernel]
        scalars = {p.name: p.dtype for p in signature.parameters if not p.pointer}
        assert set(scalars) == set(launch.scalars)
        for name, dtype in scalars.items():
            value = launch.scalars[name]
            if dtype.kind != "f":
                assert isinstance(value, int), name
                assert np.iinfo(dtype).min <= value <= np.iinfo(dtype).max, name
        pointers = {p.name for p in signature.parameters if p.pointer}
        assert set(launch.arrays) <= pointers


def test_magic_divides_every_number():
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
        mul, shift = plan.magic(d)
        assert mul < 2**32
        assert shift < 64
        near = [n for q in (0, 1, 2, (2**31 - 1) // d) for n in (q * d - 1, q * d, q * d + 1)]
        for n in [*near, 2**31 - 1, *map(int, rng.integers(0, 2**31, 20))]:
            if 0 <= n < 2**31:
                assert n * mul >> shift == n // d, (n, d)
    for d in (0, -1, 2**31):
        with pytest.raises(ValueError, match="divisor"):
            plan.magic(d)


@pytest.mark.parametrize("name", CONVS)
def test_tiles_cover_the_result(name):
    c = CONVS[name]
    if c.depthwise:
        return
    (forward,) = plan_conv.forward(c, True, False).launches
    if forward.file == "conv_first.cu":
        blocks, down, tiles = (forward.scalars[n] for n in ("blocks", "tiles_h", "tiles_w"))
        lanes = int(dict(forward.defines)["LANES"])
        assert blocks * 8 * lanes >= c.K > (blocks - 1) * 8 * lanes
        assert down * 32 // lanes >= c.P > (down - 1) * 32 // lanes
        assert tiles * 32 >= c.Q > (tiles - 1) * 32
        assert forward.grid == (c.N * down * tiles * blocks, 1, 1)
        return
    tile = int(dict(forward.defines)["TILE"])
    across = forward.scalars["tiles_across"]
    assert across * tile >= c.filters > (across - 1) * tile
    down = forward.grid[0] // across
    assert down * tile >= c.N * c.P * c.Q > (down - 1) * tile
    assert forward.grid[1] == c.groups


@pytest.mark.parametrize("name", CONVS)
def test_slices_cover_the_pixels_and_none_is_too_long(name):
    c = CONVS[name]
    weight = plan_conv.backward_weight(c)
    first = weight.launches[0]
    slices = first.grid[1 if c.depthwise else 2]
    length, pixels = first.scalars["slice"], c.N * c.P * c.Q
    if first.file == "conv_first.cu":  # in segments of up to 32 pixels
        assert first.scalars["segments"] == c.N * c.P * plan.ceil_div(c.Q, 32)
        length, pixels = 32 * length, 32 * first.scalars["segments"]
    assert length % 16 == 0
    assert slices * length >= pixels > (slices - 1) * length
    assert length <= max(plan_slices.SLICE_MOST, plan.ceil_div(pixels, plan.GRID_YZ) + 16)
    size = c.K * c.R * c.S * c.channels
    assert weight.workspace == (slices * size if slices > 1 else 0)


def test_vectors_only_where_every_access_is_aligned():
    def macros(p):
        return dict(p.launches[0].defines)

    odd = conv((8, 6, 9, 9), 8, (3, 3))
    assert macros(plan_conv.forward(odd, True, False))["VEC_A"] == "1"
    assert macros(plan_conv.forward(odd, True, False))["VEC_OUT"] == "4"
    assert macros(plan_conv.backward_data(odd, False))["VEC_A"] == "4"
    assert macros(plan_conv.backward_data(odd, False))["VEC_B"] == "1"
    grouped = conv((8, 12, 9, 9), 16, (3, 3), groups=2)  # 12 channels, but 6 a group
    assert macros(plan_conv.forward(grouped, True, False))["VEC_A"] == "1"
    assert macros(plan_conv.backward_weight(grouped))["VEC_OUT"] == "1"


def test_the_window_mask_is_left_where_it_does_not_fit():
    for kernel, bits in (((16, 15), "1"), ((17, 1), "0"), ((1, 16), "0")):
        c = conv((1, 8, 40, 40), 8, kernel)
        assert dict(plan_conv.forward(c, True, False).launches[0].defines)["WINDOW_BITS"] == bits


@pytest.mark.parametrize("shape", [(256, 64, 112, 112), (1, 5, 3, 3), (8, 2048, 7, 7)])
def test_slices_of_statistics_cover_the_pixels(shape):
    N, C, H, W = shape
    found = plan_channels.batch_norm2d_statistics(shape, C, 1 if C % 4 else 4)
    first, merge = found.launches
    number, length = first.grid[1], first.scalars["slice"]
    assert number * length >= N * H * W > (number - 1) * length
    assert merge.scalars["number"] == number
    assert merge.scalars["slice"] == length
    assert found.workspace == (2 * number + 1) * C
    lanes = first.scalars["lanes"] * int(dict(first.defines)["VEC"])
    assert first.grid[0] * lanes >= C > (first.grid[0] - 1) * lanes


def test_plans_depend_on_shapes_alone():
    for c in CONVS.values():
        assert list(plans_of(c)) == list(plans_of(c))


@pytest.mark.parametrize(
    ("c", "text"),
    [
        (conv((2**16, 4, 182, 182), 4, (1, 1)), "output pixels are 21"),
        (conv((2**12, 3, 512, 512), 4, (1, 1), stride=2), "vectors of x are"),
        (Conv(1, 70000, 2, 2, 140000, 1, 1, 2, 2, groups=70000), "70000 groups"),
    ],
)
def test_what_32_bits_do_not_hold_is_refused(c, text):
    with pytest.raises(ValueError, match=f"conv2d: {text}"):
        plan_conv.forward(c, True, False)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda s: plan_channels.batch_norm2d_statistics(s, 4, 4), "batch_norm2d: pixels are 2"),
        (lambda s: plan_channels.channels("copy_channels", s, 4, 4, 4), "copy_channels: pixels"),
        (lambda s: plan_channels.global_avg_pool2d(s), "adaptive_avg_pool2d: pixels are 2"),
        (
            lambda s: plan_channels.adaptive_avg_pool2d((1, 4, 2**12, 1), (2**20, 2)),
            "adaptive_avg_pool2d: rows are 4",
        ),
        (lambda s: plan_channels.local_response_norm(s, 5, 1, 1, 1), "local_response_norm: pixels"),
        (lambda s: plan_channels.partial_filters(2**16, 2**15, 1, 4), "filter elements are 2"),
    ],
)
def test_more_pixels_than_32_bits_hold_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make((2**16, 4, 2**8, 2**7))


def test_a_filter_past_shared_memory_is_refused():
    c = conv((1, 2, 130, 130), 2, (128, 128), groups=2)
    with pytest.raises(NotImplementedError, match="do not fit 49152 bytes of shared memory"):
        plan_depthwise.forward(c, True, False)


def test_a_launch_past_a_limit_is_refused():
    (launch,) = plan_dense.elementwise("relu.cu", "relu_forward", 8).launches
    for change, text in (
        ({"grid": (1, 65536, 1)}, "relu_forward: a grid of 1 x 65536 x 1"),
        ({"block": 2048}, "2048 threads a block, 1 to 1024"),
        ({"shared": 100 << 10}, "102400 bytes of shared memory a block, this card has 65536"),
    ):
        with pytest.raises(ValueError, match=text):
            plan.require_fits(plan.Launch(**{**vars(launch), **change}), plan.LIMITS["sm_75"])


def test_chunks_cover_every_tensor():
    owner, part = plan_dense.chunks([1, 4096, 4097, 0, 9000])
    assert owner == [0, 1, 2, 2, 4, 4, 4]
    assert part == [0, 0, 0, 1, 0, 1, 2]


def test_labels_of_another_type_are_refused():
    with pytest.raises(TypeError, match="cross_entropy: labels must be int32 or int64, got int8"):
        plan_dense.loss("cross_entropy_forward", 4, 10, "int8")
