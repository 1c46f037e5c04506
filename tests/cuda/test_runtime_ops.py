"""Operations on a device (tests/helpers/simulated.py says which) against definitions in float64,
over random geometries.
"""

import numpy as np
import pytest
from cases import conv_case, pool_case
from simulated import DEVICE, assert_within, gamma, on, sim, single

from gpuconv import ops
from gpuconv.arrays import to_device, to_numpy
from gpuconv.shapes import window
from gpuconv.strides import channels_last

RELU_AND_KIN = ("relu", "tanh", "scaled_tanh", "sigmoid")


@pytest.mark.parametrize("seed", range(10))
def test_convolutions(seed):
    x, w, b, *geometry = conv_case(seed)
    (x, w, b), wide = single(x, w, b)
    there = on(DEVICE, x, w, b)
    y = ops.conv2d(*there, *geometry)
    sizes = ops.conv2d.reference(*(a if a is None else np.abs(a) for a in wide), *geometry)
    terms = np.prod(w.shape[1:]) + 2
    assert_within(y, ops.conv2d.reference(*wide, *geometry), gamma(terms) * sizes)
    dy = np.random.default_rng(seed).standard_normal(y.shape).astype(np.float32)
    found = ops.conv2d_backward(to_device(dy, DEVICE), *there, *geometry)
    expected = ops.conv2d_backward.reference(dy.astype(float), *wide, *geometry)
    plain = [np.abs(a) if a is not None else a for a in wide]
    bounds = ops.conv2d_backward.reference(np.abs(dy).astype(float), *plain, *geometry)
    counts = (w.shape[0] * w[0, 0].size, dy[:, 0].size + 8, dy[:, 0].size + 8)
    for one, right, bound, count in zip(found, expected, bounds, counts, strict=True):
        if right is None:
            assert one is None
        else:
            assert_within(one, right, gamma(count + 2) * bound)


@pytest.mark.parametrize("seed", range(8))
def test_max_pooling_is_exact(seed):
    x, *geometry = pool_case(seed)
    x = x.astype(np.float32)
    x.reshape(-1)[:: max(1, x.size // 3)] = np.nan
    y, argmax = ops.max_pool2d(to_device(x, DEVICE), *geometry)
    right, where = ops.max_pool2d.reference(x, *geometry)
    np.testing.assert_array_equal(to_numpy(y), right)
    np.testing.assert_array_equal(to_numpy(argmax), where)
    dy = np.random.default_rng(seed).integers(-4, 5, y.shape).astype(np.float32)
    dx = ops.max_pool2d_backward(to_device(dy, DEVICE), argmax, x.shape, *geometry)
    np.testing.assert_array_equal(
        to_numpy(dx), ops.max_pool2d_backward.reference(dy, where, x.shape, *geometry)
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["sum_pool2d", "avg_pool2d"])
def test_average_and_sum_pooling(name, seed):
    x, *geometry = pool_case(seed)
    if name == "avg_pool2d":
        geometry.append(bool(seed % 2))
    (x,), (wide,) = single(x)
    forward, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
    right = forward.reference(wide, *geometry)
    taps = window(*geometry[:5]).taps_count
    bound = gamma(taps + 2) * forward.reference(np.abs(wide), *geometry)
    assert_within(forward(to_device(x, DEVICE), *geometry), right, bound)
    dy = np.random.default_rng(seed).standard_normal(right.shape).astype(np.float32)
    dx = backward(to_device(dy, DEVICE), x.shape, *geometry)
    bound = gamma(taps + 2) * backward.reference(np.abs(dy).astype(float), x.shape, *geometry)
    assert_within(dx, backward.reference(dy.astype(float), x.shape, *geometry), bound)


@pytest.mark.parametrize("name", RELU_AND_KIN)
def test_activations_in_either_layout(name):
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((2, 2, 3, 5, 7)).astype(np.float32)
    forward, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
    right = forward.reference(x.astype(float))
    for last in (False, True):
        given = to_device(x, DEVICE, weights=last)
        y = forward(given)
        assert channels_last(y) == last
        assert_within(y, right, 4 * np.spacing(np.abs(right).astype(np.float32)))
        dx = backward(to_device(dy, DEVICE, weights=not last), y)  # of the other layout
        expected = backward.reference(dy.astype(float), to_numpy(y).astype(float))
        assert_within(dx, expected, 16 * 2.0**-24 * (np.abs(dy) + np.abs(expected)))


def test_softmax_over_pixels_and_rows():
    rng = np.random.default_rng(4)
    for shape in ((5, 7), (3, 4, 6), (2, 3, 4, 5), (2, 3, 2, 2, 2)):
        x, dy = (8 * rng.standard_normal((2, *shape))).astype(np.float32)
        y = ops.softmax(to_device(x, DEVICE))
        right = ops.softmax.reference(x.astype(float))
        assert_within(y, right, 3e-6 * right + 1e-30)  # exp of up to -40
        dx = ops.softmax_backward(to_device(dy, DEVICE), y)
        expected = ops.softmax_backward.reference(dy.astype(float), right)
        assert_within(dx, expected, 1e-5 * np.abs(dy).max() * right + 1e-30)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("name", "options", "back"),
    [
        ("cross_entropy", (), ()),
        ("cross_entropy", (0.1,), (0.1,)),
        ("half_squared_error", (), ()),
        ("hinge", (0.7,), ()),
    ],
)
def test_losses(name, options, back, kind):
    rng = np.random.default_rng(5)
    scores, labels = rng.standard_normal((37, 11)).astype(np.float32), rng.integers(0, 11, 37)
    forward, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
    there = on(DEVICE, scores, labels.astype(kind))
    loss, kept = forward(*there, *options)
    right, right_kept = forward.reference(scores.astype(float), labels, *options)
    assert isinstance(loss, float)
    assert loss == pytest.approx(right, rel=2e-6)
    assert_within(kept, right_kept, 2e-6 * (np.abs(right_kept) + 4 * (name == "hinge")))
    dscores = backward(kept, there[1], *back)
    assert_within(dscores, backward.reference(right_kept, labels, *back), 1e-6)


def test_a_label_out_of_range_is_refused_as_on_the_cpu():
    scores = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="label 3 is out of range: 3 classes"):
        ops.cross_entropy(*on(DEVICE, scores, np.int64([0, 3])))


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_linear(activation):
    rng = np.random.default_rng(6)
    arrays = (rng.standard_normal(s) for s in ((5, 13), (9, 13), 9))
    (x, w, b), wide = single(*arrays)
    there = on(DEVICE, x, w, b)
    y = ops.linear(*there, activation)
    right = ops.linear.reference(*wide, activation)
    assert_within(y, right, 1e-5)
    dy = rng.standard_normal((5, 9)).astype(np.float32)
    found = ops.linear_backward(to_device(dy, DEVICE), *there, activation, y)
    expected = ops.linear_backward.reference(dy.astype(float), *wide, activation, right)
    for one, other in zip(found, expected, strict=True):
        assert_within(one, other, 2e-5)


def test_dropout_has_the_same_mask_and_bits_everywhere():
    x = np.random.default_rng(7).standard_normal((3, 5, 4, 7)).astype(np.float32)
    right = ops.dropout.reference(x, 0.3, 99)
    for last in (False, True):
        y = ops.dropout(to_device(x, DEVICE, weights=last), 0.3, 99)
        np.testing.assert_array_equal(to_numpy(y), right)


def test_convolution_relu_and_pool_in_one():
    rng = np.random.default_rng(8)
    arrays = (rng.standard_normal(s) for s in ((2, 3, 9, 11), (4, 3, 3, 3), 4))
    (x, w, b), wide = single(*arrays)
    there = on(DEVICE, x, w, b)
    y, argmax = ops.conv2d_relu_max_pool2d(*there, padding=1)
    right, where = ops.conv2d_relu_max_pool2d.reference(*wide, padding=1)
    assert_within(y, right, 1e-5)
    np.testing.assert_array_equal(to_numpy(argmax), where)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    found = ops.conv2d_relu_max_pool2d_backward(to_device(dy, DEVICE), y, argmax, *there, padding=1)
    expected = ops.conv2d_relu_max_pool2d_backward.reference(
        dy.astype(float), right, where, *wide, padding=1
    )
    for one, other in zip(found, expected, strict=True):
        assert_within(one, other, 1e-4)


def test_nothing_in_gives_nothing_out():
    x, w = np.zeros((0, 3, 5, 5), np.float32), np.ones((2, 3, 3, 3), np.float32)
    y = ops.conv2d(*on(DEVICE, x, w))
    assert y.shape == (0, 2, 3, 3)
    dx, dw, db = ops.conv2d_backward(y, *on(DEVICE, x, w))
    assert dx.shape == x.shape
    assert not to_numpy(dw).any()
    assert db is None


def test_arrays_of_two_devices_are_refused_by_name():
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 2, 2), np.float32)
    with pytest.raises(TypeError, match=f"conv2d: x is on {DEVICE}, w on cpu; move one of them"):
        ops.conv2d(to_device(x, DEVICE), w)
    with pytest.raises(TypeError, match=f"conv2d: x is on cpu, w on {DEVICE}"):
        ops.conv2d(x, to_device(w, DEVICE))
    with pytest.raises(TypeError, match=f"cross_entropy: scores is on {DEVICE}, labels on cpu"):
        ops.cross_entropy(to_device(np.ones((1, 2), np.float32), DEVICE), np.zeros(1, int))
    with pytest.raises(TypeError, match=f"relu: the reference takes NumPy arrays, not {DEVICE}'s"):
        ops.relu.reference(to_device(x, DEVICE))


WRONG = [
    (lambda x, w: (x, w[:, :2]), ValueError, "x has 3 channels, w expects 2 per group"),
    (lambda x, w: (x[0], w), ValueError, r"x must have 4 axes \(N, C, H, W\), got shape"),
    (lambda x, w: (x, w, np.ones(3, np.float32)), ValueError, r"b must have shape \(2,\)"),
    (lambda x, w: (x.astype(np.int32), w), TypeError, "x must be float32 or float64, got int32"),
    (lambda x, w: (x, w, None, 0), ValueError, "stride must be at least 1, got 0"),
]


@pytest.mark.parametrize(("change", "error", "text"), WRONG)
def test_wrong_arguments_get_the_same_line_on_every_device(change, error, text):
    given = change(np.ones((1, 3, 5, 5), np.float32), np.ones((2, 3, 3, 3), np.float32))
    messages = []
    for device in ("cpu", DEVICE):
        with pytest.raises(error, match=text) as caught:
            ops.conv2d(*on(device, *given))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_float64_is_refused_where_kernels_are_float32():
    with pytest.raises(TypeError, match=f"relu: x is float64, {DEVICE} computes in float32"):
        ops.relu(to_device(np.ones(3), DEVICE))


@pytest.mark.skipif(DEVICE != "sim", reason="is about the simulator's own arrays")
def test_sim_arrays_with_exchanged_axes():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    there = sim.asarray(x).transpose(2, 0, 1)
    np.testing.assert_array_equal(sim.asnumpy(there), x.transpose(2, 0, 1))
    assert not there.contiguous
    np.testing.assert_array_equal(sim.asnumpy(there[0]), x.transpose(2, 0, 1)[0])
    with pytest.raises(ValueError, match="transposed or sliced view"):
        there.reshape(24)
    np.testing.assert_array_equal(sim.asnumpy(there.copy()[1]), x.transpose(2, 0, 1)[1])


def layouts(x, device="sim"):
    """x there in plain memory, channels-last, and as channels of a wider channels-last image."""
    wide = np.concatenate([x, np.full_like(x, 7), x], 1)
    C = x.shape[1]
    yield to_device(x, device)
    yield to_device(x, device, weights=True)
    for first in (0, C, 2 * C):
        part = to_device(wide, device, weights=True)[:, first : first + C]
        if first != C:
            yield part


@pytest.mark.parametrize("C", [3, 4, 8])
@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_every_layout(C, affine, training):
    rng = np.random.default_rng([C, *affine])
    x = rng.standard_normal((3, C, 4, 5)).astype(np.float32)
    w, b, mean, var = (rng.random((4, C)) + 0.5).astype(np.float32)
    given = (w if affine[0] else None, b if affine[1] else None)
    given += (None, None) if training else (mean, var)
    (_, *double), dy = single(x, *given)[1], rng.standard_normal(x.shape).astype(np.float32)
    right = ops.batch_norm2d.reference(x.astype(float), *double, 1e-5, "relu")
    edge = ops.batch_norm2d.reference(x.astype(float), *double, 1e-5)[0]
    dy[np.abs(edge) < 1e-5] = 0
    tail = (1e-5, "relu", training)
    exact = ops.batch_norm2d_backward.reference(
        dy.astype(float), x.astype(float), *double[:2], *right[1:], *tail
    )
    there = on("sim", *given)
    for there_x, there_dy in zip(layouts(x), reversed(list(layouts(dy))), strict=True):
        y, *used = ops.batch_norm2d(there_x, *there, activation="relu")
        assert channels_last(y)
        # 60 values of order 1: the sums' errors stay below 60 units of theirs
        assert_within(y, right[0], 1e-5)
        for one, other in zip(used, right[1:], strict=True):
            assert_within(one, other, 1e-5)
        found = ops.batch_norm2d_backward(there_dy, there_x, *there[:2], *used, *tail)
        for one, other in zip(found, exact, strict=True):
            assert (one is None) == (other is None)
            if other is not None:
                assert_within(one, other, 2e-5 * (1 + np.abs(other)))
        without = ops.batch_norm2d_backward(there_dy, there_x, *there[:2], *used, *tail, False)
        assert without[0] is None
        for one, other in zip(without[1:], found[1:], strict=True):
            assert one is other or to_numpy(one).tobytes() == to_numpy(other).tobytes()


def test_response_norm_and_adaptive_pooling_in_every_layout():
    rng = np.random.default_rng(11)
    x, dy = rng.standard_normal((2, 2, 4, 5, 7)).astype(np.float32)
    right = ops.local_response_norm.reference(x.astype(float), 3, 0.1)
    back = ops.local_response_norm_backward.reference(dy.astype(float), x.astype(float), 3, 0.1)
    pooled = ops.adaptive_avg_pool2d.reference(x.astype(float), (2, 3))
    mean = x.mean((2, 3), dtype=float)[..., None, None]
    spread = ops.adaptive_avg_pool2d_backward.reference(dy.astype(float), (2, 4, 9, 8))
    for a, b in zip(layouts(x), layouts(dy), strict=True):
        assert_within(ops.local_response_norm(a, 3, 0.1), right, 2e-6 * np.abs(right))
        assert_within(ops.local_response_norm_backward(b, a, 3, 0.1), back, 1e-5)
        assert_within(ops.adaptive_avg_pool2d(a, (2, 3)), pooled, 1e-6)
        assert_within(ops.adaptive_avg_pool2d(a, 1), mean, 1e-6)
        assert_within(ops.adaptive_avg_pool2d_backward(b, (2, 4, 9, 8)), spread, 1e-6)


def test_sums_joins_and_weights_of_branches_are_exact():
    rng = np.random.default_rng(12)
    a, b = rng.standard_normal((2, 2, 4, 5, 7)).astype(np.float32)
    a[0, 0, 0] = np.nan
    for there, other in zip(layouts(a), reversed(list(layouts(b))), strict=True):
        np.testing.assert_array_equal(to_numpy(ops.add(there, other)), a + b)
        both = ops.add(there, other, "relu")
        np.testing.assert_array_equal(to_numpy(both), np.maximum(a + b, 0))
        np.testing.assert_array_equal(to_numpy(ops.multiply(there, other)), a * b)
        np.testing.assert_array_equal(to_numpy(ops.scale(there, 0.3)), a * np.float32(0.3))
        whole = to_device(np.concatenate([b, b, b], 1), "sim", weights=True)
        assert ops.assign(whole[:, 4:8], there).shape == a.shape
        ops.accumulate(whole[:, 8:], there)
        expected = np.concatenate([b, a, b + a], 1)
        np.testing.assert_array_equal(to_numpy(whole), expected)
    flat = to_device(a.reshape(2, -1), "sim")
    ops.accumulate(flat, to_device(b.reshape(2, -1), "sim"))
    np.testing.assert_array_equal(to_numpy(flat), (a + b).reshape(2, -1))
    with pytest.raises(ValueError, match="must be channels of a channels-last image"):
        ops.assign(to_device(a, "sim"), to_device(b, "sim"))


def test_images_of_one_pixel_with_their_axes_exchanged():
    """No kernel rearranges one pixel, but its channels may still lie apart."""
    x = np.random.default_rng(13).standard_normal((4, 3, 1, 1)).astype(np.float32)
    w = np.eye(4, dtype=np.float32)[:, :, None, None]
    y = ops.conv2d(to_device(x, "sim").transpose(1, 0, 2, 3), to_device(w, "sim"))
    np.testing.assert_array_equal(to_numpy(y), x.transpose(1, 0, 2, 3))
    whole = to_device(np.random.default_rng(14).random((3, 8, 1, 1), np.float32), "sim")
    y = ops.conv2d(whole[:, 2:6], to_device(w, "sim"))
    np.testing.assert_array_equal(to_numpy(y), to_numpy(whole)[:, 2:6])


def test_parts_of_sim_arrays():
    x = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    there = sim.asarray(x)
    for part in ((slice(None), slice(1, 3)), (slice(1, 2), slice(None), slice(0, 9), slice(2, 4))):
        np.testing.assert_array_equal(sim.asnumpy(there[part]), x[part])
        np.testing.assert_array_equal(sim.asnumpy(there[part].copy()), x[part])
    assert there[:, 1:2].span().shape == (80,)
    assert there[:, 5:9].size == there[:, 5:9].span().size == 0
    with pytest.raises(ValueError, match="take step 1"):
        there[:, ::2]
    with pytest.raises(TypeError, match="takes integers and slices"):
        there[0, [1]]
    with pytest.raises(ValueError, match="fill needs a sim array in C order"):
        there[:, 1:2].fill(0)
