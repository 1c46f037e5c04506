"""The typed launcher: no wrong argument reaches a kernel, and each error names the argument."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import sim

from gpuconv.cuda.binding import View, bind, cast, signature_of
from gpuconv.cuda.launch_config import LIMITS, LaunchConfig, config_elementwise
from gpuconv.cuda.runtime import MAX_BOUND
from gpuconv.cuda.sim import SimRuntime
from gpuconv.ops import conv2d_launch, pool2d_launch
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.optim.device import config_optimizer
from gpuconv.shapes import window

RELU = config_elementwise("relu.cu", "relu_forward", 64)
BACK = config_elementwise("relu.cu", "relu_backward", 64)


@pytest.fixture(scope="module")
def runtime():
    return SimRuntime()


def floats(count=64, dtype=np.float32):
    return sim.zeros(count, dtype)


def checked(launch, views, device, limits):
    """As Runtime.run: bound, then its addresses looked at."""
    addresses = {name: view.address for name, view in views.items()}
    return bind(launch, views, device, limits).arguments(views, addresses)


REFUSED = [
    ({"x": floats(63)}, ValueError, "relu_forward: x must have 64 elements, got 63"),
    ({"x": floats(64, np.float64)}, TypeError, "relu_forward: x must be float32, got float64"),
    ({"x": floats(64, np.int32)}, TypeError, "relu_forward: x must be float32, got int32"),
    ({"x": floats(65)[1:]}, ValueError, "x starts at an address that is not a multiple of 16"),
    ({"x": sim.zeros((8, 8)).transpose(1, 0)}, ValueError, "x is not contiguous in memory"),
    ({"x": np.zeros(64, np.float32)}, ValueError, r"x is on the host \(ndarray\), the kernel runs"),
    ({"x": None}, ValueError, r"x is on the host \(NoneType\)"),
    ({"x": [1.0] * 64}, ValueError, r"x is on the host \(list\)"),
]


@pytest.mark.parametrize(("arrays", "error", "text"), REFUSED)
def test_wrong_arrays(runtime, arrays, error, text):
    with pytest.raises(error, match=text) as caught:
        runtime.run(RELU, **{"y": floats(), "x": floats(), **arrays})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("arrays", "error", "text"), REFUSED)
def test_wrong_arrays_after_right_ones(arrays, error, text):
    """What is bound for right arrays serves no wrong ones, nor do wrong ones spoil it."""
    runtime = SimRuntime()
    right = {"y": floats(), "x": floats()}
    for _ in range(2):
        runtime.run(RELU, **right)
        with pytest.raises(error, match=text):
            runtime.run(RELU, **{**right, **arrays})
    assert runtime.ran == {"relu_forward": 2}


def test_equal_layouts_are_bound_once():
    runtime, x = SimRuntime(), sim.asarray(np.float32([-1, 2] * 32))
    found = []
    for _ in range(3):
        y = floats()
        runtime.run(RELU, y=y, x=x)
        found.append(sim.asnumpy(y))
    assert len(runtime._bound) == 1
    for y in found:
        np.testing.assert_array_equal(y, [0, 2] * 32)
    with pytest.raises(TypeError, match="relu_forward: z not its parameter"):
        runtime.run(RELU, {"z": 1}, y=floats(), x=x)
    with pytest.raises(TypeError, match="relu_forward: x missing"):
        runtime.run(RELU, y=floats())
    runtime.run(RELU, y=floats((8, 8)), x=x)  # another layout, though as good
    assert len(runtime._bound) == 2


def test_bindings_are_bounded_and_never_taken_for_those_of_another_configuration():
    runtime, x = SimRuntime(), floats()
    for _ in range(3):  # configurations that nobody keeps, so that ids come again
        for launch in RELU.launches:
            runtime.run(LaunchConfig((replace(launch),)), y=floats(), x=x)
            wrong = LaunchConfig((replace(launch, sizes={"x": 64, "y": 60}),))
            with pytest.raises(ValueError, match="y must have 60 elements"):
                runtime.run(wrong, y=floats(), x=x)
    for number in range(MAX_BOUND):
        runtime._bound[number,] = RELU, []
    runtime.run(RELU, y=floats(), x=x)
    assert len(runtime._bound) == MAX_BOUND


def test_recorded_launches_start_again():
    runtime, x = SimRuntime(), sim.asarray(np.float32([-1, 2] * 32))
    for _ in range(2):
        runtime.recorded, y = [], floats()
        runtime.run(RELU, y=y, x=x)
        ((launch, arguments),) = runtime.recorded
        runtime.recorded = None
        y.fill(7)
        runtime.start(launch, arguments)
        np.testing.assert_array_equal(sim.asnumpy(y), [0, 2] * 32)


def test_numbers_of_a_call_are_checked_at_each_call():
    runtime = SimRuntime()
    scale, x = config_elementwise("elementwise.cu", "scale", 64), sim.asarray(np.ones(64, "f4"))
    for factor in (2.0, 3, 0.5):
        y = floats()
        runtime.run(scale, {"factor": factor}, to=y, a=x)
        assert (sim.asnumpy(y) == factor).all()
        for wrong, error, text in (
            (float("nan"), ValueError, "scale: factor must be finite, got nan"),
            ("2", TypeError, "scale: factor is float32: give a number, got '2'"),
            (1e39, ValueError, "does not fit"),
        ):
            with pytest.raises(error, match=text):
                runtime.run(scale, {"factor": wrong}, to=y, a=x)
        with pytest.raises(TypeError, match="scale: factor missing"):
            runtime.run(scale, to=y, a=x)
        with pytest.raises(TypeError, match="scale: count given twice"):
            runtime.run(scale, {"factor": 1, "count": 8}, to=y, a=x)
    assert len(runtime._bound) == 1


def test_tables_of_addresses():
    runtime = SimRuntime()
    p, grad = sim.asarray(np.ones(8, "f4")), sim.asarray(np.full(8, 2, "f4"))
    arrays = {
        "tensors": sim.asarray(np.uint64([[p.ptr, grad.ptr, 0, 0, 0, 8]])),
        "step": runtime.nought("f4", 2),
        "stop": runtime.nought("u4"),
        "owner": sim.asarray(np.int32([0])),
        "part": sim.asarray(np.int32([0])),
    }
    runtime.run(config_optimizer("sgd", 1, 1), {"lr": 0.25, "decay": 0.0}, **arrays)
    np.testing.assert_array_equal(sim.asnumpy(p), np.full(8, 0.5))


def test_nothing_starts_unless_every_launch_fits():
    runtime = SimRuntime()
    config = conv2d_launch.config_backward_bias(1444, 8)
    assert len(config.launches) == 2
    dy, whole = floats(1444 * 8), floats(8 + 4)
    runtime.run(config, db=whole[:8], dy=dy)
    before = dict(runtime.ran)
    with pytest.raises(ValueError, match="sum_partials: out must have 8 elements, got 12"):
        runtime.run(config, db=whole, dy=dy)
    assert runtime.ran == before


def test_a_missing_array_and_unknown_numbers(runtime):
    with pytest.raises(TypeError, match="relu_forward: x missing: no array 'x' was given"):
        runtime.run(RELU, y=floats())
    (launch,) = RELU.launches
    with pytest.raises(TypeError, match="relu_forward: count missing"):
        bind(replace(launch, scalars={}), {}, "sim", LIMITS["sm_80"])
    with pytest.raises(TypeError, match="relu_forward: speed not its parameter"):
        bind(replace(launch, scalars={"count": 64, "speed": 1}), {}, "sim", LIMITS["sm_80"])
    with pytest.raises(ValueError, match=r"no kernel 'relu' in relu.cu, which has: relu_forward"):
        signature_of(replace(launch, kernel="relu"))


def test_overlapping_memory(runtime):
    both = floats(128)
    with pytest.raises(ValueError, match="relu_forward: y and x overlap in memory"):
        runtime.run(RELU, y=both[:64], x=both[32:96])
    runtime.run(RELU, y=both[:64], x=both[:64])  # in place, as its header allows
    runtime.run(BACK, dx=both[:64], dy=both[64:], y=both[64:])  # both only read
    pool = pool2d_launch.config_avg_pool2d((1, 4, 4, 4), window(1))
    with pytest.raises(ValueError, match="avg_pool2d_forward: y and x overlap"):
        runtime.run(pool, y=both[:64], x=both[:64])  # declared __restrict__
    for _ in range(2):  # also where the same layouts were bound before
        runtime.run(pool, y=both[:64], x=both[64:])
        runtime.run(RELU, y=both[:64], x=both[64:])
        for first in (4, 32, 60):
            with pytest.raises(ValueError, match="avg_pool2d_forward: y and x overlap"):
                runtime.run(pool, y=both[:64], x=both[first : first + 64])
            with pytest.raises(ValueError, match="relu_forward: y and x overlap"):
                runtime.run(RELU, y=both[:64], x=both[first : first + 64])


@pytest.mark.parametrize(
    ("dtype", "value", "error", "text"),
    [
        (np.float32, float("nan"), ValueError, "f: lr must be finite, got nan"),
        (np.float32, float("inf"), ValueError, "f: lr must be finite, got inf"),
        (np.float32, 1e39, ValueError, r"f: lr is float32: 1e\+39 does not fit"),
        (np.float32, "1", TypeError, "f: lr is float32: give a number, got '1'"),
        (np.float32, None, TypeError, "give a number, got None"),
        (np.int32, 1.0, TypeError, r"f: lr is int32: give an integer, got 1\.0"),
        (np.int32, True, TypeError, "give an integer, got True"),
        (np.int32, 2**31, ValueError, "f: lr is int32: 2147483648 does not fit"),
        (np.uint32, -1, ValueError, "f: lr is uint32: -1 does not fit"),
        (np.uint64, 2**64, ValueError, "does not fit"),
    ],
)
def test_numbers_that_are_refused(dtype, value, error, text):
    with pytest.raises(error, match=text):
        cast("f: lr", np.dtype(dtype), value)


def test_numbers_become_exactly_the_declared_type():
    for dtype, value in ((np.float32, 3), (np.float32, 0.1), (np.uint64, 2**64 - 1)):
        found = cast("f", np.dtype(dtype), value)
        assert type(found) is dtype
        assert found == dtype(value)


def test_non_finite_hyperparameters_never_reach_a_kernel(runtime):
    config = config_elementwise("elementwise.cu", "scale", 64)
    with pytest.raises(ValueError, match="scale: factor must be finite, got nan"):
        runtime.run(config, {"factor": float("nan")}, to=floats(), a=floats())


def test_grids_past_the_limits(runtime):
    (launch,) = RELU.launches
    for grid, text in (((1, 65536, 1), "a grid of 1 x 65536 x 1"), ((0, 1, 1), "a grid of 0 x")):
        with pytest.raises(ValueError, match=f"relu_forward: {text}"):
            bind(replace(launch, grid=grid), {}, "sim", LIMITS["sm_80"])
    for block in (1025, 0, -32):
        with pytest.raises(ValueError, match=f"relu_forward: {block} threads a block, 1 to 1024"):
            bind(replace(launch, block=block), {}, "sim", LIMITS["sm_80"])
    with pytest.raises(ValueError, match="relu_forward: 65537 bytes of shared memory a block"):
        bind(replace(launch, shared=65537), {}, "sim", LIMITS["sm_75"])


def test_an_array_of_another_card():
    (launch,) = RELU.launches
    x = View(4096, 256, 64, np.dtype(np.float32), True, "cuda:1")
    views = {"y": replace(x, device="cuda:0"), "x": x}
    text = "relu_forward: x is on cuda:1, the kernel runs on cuda:0: move it"
    with pytest.raises(ValueError, match=text):
        bind(launch, views, "cuda:0", LIMITS["sm_80"])


def test_neighbours_do_not_overlap_and_one_byte_does():
    (launch,) = RELU.launches
    y = View(4096, 256, 64, np.dtype(np.float32), True, "sim")
    for address, apart in ((4096 + 256, True), (4096 - 256, True), (4352 - 16, False),
                           (3840 + 16, False)):  # fmt: skip
        views = {"y": y, "x": replace(y, address=address)}
        if apart:
            checked(launch, views, "sim", LIMITS["sm_80"])
        else:
            with pytest.raises(ValueError, match="relu_forward: y and x overlap in memory: copy"):
                checked(launch, views, "sim", LIMITS["sm_80"])


def test_convolution_pointers_have_their_shapes_sizes(runtime):
    conv = Conv2dShape.of((2, 4, 6, 6), (8, 4, 3, 3), window(3), 1)
    right = {"y": (2, 4, 4, 8), "x": (2, 6, 6, 4), "w": (8, 3, 3, 4), "b": (8,)}
    arrays = {name: sim.zeros(shape) for name, shape in right.items()}
    runtime.run(conv2d_launch.config_forward(conv, True, False), **arrays)
    for name in right:
        wrong = {**arrays, name: sim.zeros(int(np.prod(right[name])) + 4)}
        with pytest.raises(ValueError, match=f"conv2d_forward_simt: {name} must have"):
            runtime.run(conv2d_launch.config_forward(conv, True, False), **wrong)
    # without a bias, b is not read: anything may stand in
    runtime.run(conv2d_launch.config_forward(conv, False, False), **{**arrays, "b": arrays["w"]})


def test_pointers_of_images_of_few_channels_have_their_shapes_sizes(runtime):
    conv = Conv2dShape.of((2, 3, 20, 37), (5, 3, 3, 2), window((3, 2)), 1)
    forward = conv2d_launch.config_forward(conv, True, False)
    weight = conv2d_launch.config_backward_weight(conv)
    for config, kernel, right in (
        (forward, "conv2d_forward_few_channels", {"y": 6480, "x": 4440, "w": 90, "b": 5}),
        (weight, "conv2d_backward_weight_few_channels", {"dy": 6480, "x": 4440, "dw": 90}),
    ):
        arrays = {name: sim.zeros(size) for name, size in right.items()}
        runtime.run(config, **arrays)
        for name in set(right) - {"dw"}:
            wrong = {**arrays, name: sim.zeros(right[name] + 4)}
            with pytest.raises(ValueError, match=f"{kernel}: {name} must have {right[name]} el"):
                runtime.run(config, **wrong)


def test_specialisations_do_not_share_code():
    runtime = SimRuntime()
    x = sim.asarray(np.float32([1, 2, 3, 4, 5, 6, 7, 8]))
    found = []
    for average in (True, False):
        y = sim.empty(4)
        config = pool2d_launch.config_avg_pool2d((1, 1, 2, 4), window((2, 1)), average)
        runtime.run(config, y=y, x=x)
        found.append(sim.asnumpy(y).tolist())
    assert found == [[3, 4, 5, 6], [6, 8, 10, 12]]
    assert len(runtime._modules) == 2


def test_layout_conversion_goes_through_the_kernel():
    runtime = SimRuntime()
    rng = np.random.default_rng(0)
    for shape in ((2, 3, 5, 7), (1, 8, 4, 8), (3, 1, 2, 2), (2, 5, 1, 1), (4, 68, 9, 4)):
        x = rng.standard_normal(shape).astype(np.float32)
        last = runtime.as_nhwc(runtime.asarray(x))
        np.testing.assert_array_equal(sim.asnumpy(last), x.transpose(0, 2, 3, 1))
        first = runtime.contiguous(runtime.as_nchw(last))
        np.testing.assert_array_equal(sim.asnumpy(first), x)
    assert runtime.ran == {"transpose": 6}  # none where one axis is 1


def test_what_a_kernel_may_not_read_is_copied():
    runtime = SimRuntime()
    whole = runtime.asarray(np.arange(9, dtype=np.float32))
    y = runtime.each("relu.cu", "relu_forward", "y", x=whole[1:])  # 4 bytes off
    np.testing.assert_array_equal(sim.asnumpy(y), np.arange(1, 9))
