"""The typed launcher: no wrong argument reaches a kernel, and each error names the argument."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import sim

from gpuconv.cuda import plan_conv, plan_dense, plan_pool, source
from gpuconv.cuda.extents import EXTENTS
from gpuconv.cuda.kernel import View, bind, cast, signature_of
from gpuconv.cuda.plan import LIMITS
from gpuconv.cuda.sim import SimRuntime
from gpuconv.shapes import window

RELU = plan_dense.elementwise("relu.cu", "relu_forward", 64)
BACK = plan_dense.elementwise("relu.cu", "relu_backward", 64)


@pytest.fixture(scope="module")
def runtime():
    return SimRuntime()


def floats(count=64, dtype=np.float32):
    return sim.zeros(count, dtype)


def test_every_kernel_has_its_extents():
    declared = {name for file in source.files() for name in _kernels(file)}
    assert declared == set(EXTENTS)
    for file in source.files():
        for name, signature in _kernels(file).items():
            pointers = {p.name for p in signature.parameters if p.pointer}
            if name not in ("sgd", "sgd_momentum", "adam"):
                assert pointers <= set(EXTENTS[name]), name


def _kernels(file):
    return source.signatures(source.text(file), {"LABEL": "int"})


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
    pool = plan_pool.avg_pool2d((1, 4, 4, 4), window(1))
    with pytest.raises(ValueError, match="avg_pool2d_forward: y and x overlap"):
        runtime.run(pool, y=both[:64], x=both[:64])  # declared __restrict__


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
    plan = plan_dense.elementwise("elementwise.cu", "scale", 64, factor=float("nan"))
    with pytest.raises(ValueError, match="scale: factor must be finite, got nan"):
        runtime.run(plan, to=floats(), a=floats())


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
            bind(launch, views, "sim", LIMITS["sm_80"])
        else:
            with pytest.raises(ValueError, match="relu_forward: y and x overlap in memory: copy"):
                bind(launch, views, "sim", LIMITS["sm_80"])


def test_convolution_pointers_have_their_shapes_sizes(runtime):
    conv = plan_conv.Conv.of((2, 4, 6, 6), (8, 4, 3, 3), window(3), 1)
    right = {"y": (2, 4, 4, 8), "x": (2, 6, 6, 4), "w": (8, 3, 3, 4), "b": (8,)}
    arrays = {name: sim.zeros(shape) for name, shape in right.items()}
    runtime.run(plan_conv.forward(conv, True, False), **arrays)
    for name in right:
        wrong = {**arrays, name: sim.zeros(int(np.prod(right[name])) + 4)}
        with pytest.raises(ValueError, match=f"conv2d_forward_simt: {name} must have"):
            runtime.run(plan_conv.forward(conv, True, False), **wrong)
    # without a bias, b is not read: anything may stand in
    runtime.run(plan_conv.forward(conv, False, False), **{**arrays, "b": arrays["w"]})


def test_pointers_of_images_of_few_channels_have_their_shapes_sizes(runtime):
    conv = plan_conv.Conv.of((2, 3, 20, 37), (5, 3, 3, 2), window((3, 2)), 1)
    forward, weight = plan_conv.forward(conv, True, False), plan_conv.backward_weight(conv)
    for plan, kernel, right in (
        (forward, "conv2d_forward_first", {"y": 2 * 18 * 36 * 5, "x": 4440, "w": 90, "b": 5}),
        (weight, "conv2d_backward_weight_first", {"dy": 2 * 18 * 36 * 5, "x": 4440, "dw": 90}),
    ):
        arrays = {name: sim.zeros(size) for name, size in right.items()}
        runtime.run(plan, **arrays)
        for name in set(right) - {"dw"}:
            wrong = {**arrays, name: sim.zeros(right[name] + 4)}
            with pytest.raises(ValueError, match=f"{kernel}: {name} must have {right[name]} el"):
                runtime.run(plan, **wrong)


def test_specialisations_do_not_share_code():
    runtime = SimRuntime()
    x = sim.asarray(np.float32([1, 2, 3, 4, 5, 6, 7, 8]))
    found = []
    for average in (True, False):
        y = sim.empty(4)
        plan = plan_pool.avg_pool2d((1, 1, 2, 4), window((2, 1)), average)
        runtime.run(plan, y=y, x=x)
        found.append(sim.asnumpy(y).tolist())
    assert found == [[3, 4, 5, 6], [6, 8, 10, 12]]
    assert len(runtime._modules) == 2


def test_layout_conversion_goes_through_the_kernel():
    runtime = SimRuntime()
    rng = np.random.default_rng(0)
    for shape in ((2, 3, 5, 7), (1, 8, 4, 8), (3, 1, 2, 2), (2, 5, 1, 1), (4, 68, 9, 4)):
        x = rng.standard_normal(shape).astype(np.float32)
        last = runtime.channels_last(runtime.asarray(x))
        np.testing.assert_array_equal(sim.asnumpy(last), x.transpose(0, 2, 3, 1))
        first = runtime.contiguous(runtime.first_view(last))
        np.testing.assert_array_equal(sim.asnumpy(first), x)
    assert runtime.ran == {"transpose": 6}  # none where one axis is 1


def test_what_a_kernel_may_not_read_is_copied():
    runtime = SimRuntime()
    whole = runtime.asarray(np.arange(9, dtype=np.float32))
    y = runtime.each("relu.cu", "relu_forward", "y", x=whole[1:])  # 4 bytes off
    np.testing.assert_array_equal(sim.asnumpy(y), np.arange(1, 9))
