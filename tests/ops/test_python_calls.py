"""The Python calls of repeated operations: on small layers they cost more than the arithmetic."""

import sys
from collections import Counter

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.cpu.precision import float64_sums, no_winograd
from gpuconv.ops import in_place
from gpuconv.threads import set_thread_count, thread_count

RNG = np.random.default_rng(10)
LENET_CALLS = 250  # of the 14 operations of a step; without what is kept they are 1,538


def floats(*shape):
    return RNG.standard_normal(shape, np.float32)


def calls_of(function):
    """Python functions called, by name, on this thread."""
    counted = Counter()

    def note(frame, event, _):
        if event == "call":
            counted[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted


@pytest.fixture
def two_threads():
    before = thread_count()
    set_thread_count(2)
    yield
    set_thread_count(before)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="3.12 inlines comprehensions")
def test_a_step_of_lenet(two_threads):
    x, labels = floats(64, 1, 32, 32), RNG.integers(0, 10, 64)
    filters = [(floats(6, 1, 5, 5), floats(6)), (floats(16, 6, 5, 5), floats(16))]
    weights = [(floats(o, i), floats(o)) for o, i in ((120, 400), (100, 120), (10, 100))]

    def step():
        first = ops.conv2d_relu_max_pool2d(x, *filters[0])
        second = ops.conv2d_relu_max_pool2d(first[0], *filters[1])
        h = [second[0].reshape(64, -1)]
        h.append(ops.linear(h[0], *weights[0], "relu"))
        h.append(ops.linear(h[1], *weights[1], "relu"))
        _, probabilities = ops.cross_entropy(ops.linear(h[2], *weights[2]), labels)
        d = ops.cross_entropy_backward(probabilities, labels)
        d = ops.linear_backward(d, h[2], *weights[2])[0]
        d = ops.linear_backward(in_place.relu_backward_into(d, h[2]), h[1], *weights[1])[0]
        d = ops.linear_backward(in_place.relu_backward_into(d, h[1]), h[0], *weights[0])[0]
        d = d.reshape(second[0].shape)
        d = ops.conv2d_relu_max_pool2d_backward(d, *second, first[0], *filters[1])[0]
        ops.conv2d_relu_max_pool2d_backward(d, *first, x, *filters[0], need_dx=False)

    for _ in range(3):
        step()
    counted = calls_of(step)
    assert counted.total() <= LENET_CALLS, counted.most_common(20)


def test_what_is_kept_follows_the_switches_and_the_threads(two_threads):
    """Each setting gives the bits it gave when nothing was kept."""
    x, w = floats(2, 32, 24, 24), floats(32, 32, 3, 3)
    small, filters = floats(4, 3, 16, 16), floats(8, 3, 5, 5)

    def run():
        y = ops.conv2d(x, w, None, 1, 1)
        pooled = ops.conv2d_relu_max_pool2d(small, filters)
        return [
            y,
            *ops.conv2d_backward(y, x, w, None, 1, 1)[:2],
            *pooled,
            ops.linear(x[0, 0], x[1, 0]),
        ]

    def plain():
        return [a.tobytes() for a in run()]

    def wide():
        with float64_sums():
            return [a.tobytes() for a in run()]

    def direct():
        with no_winograd():
            return [a.tobytes() for a in run()]

    def one_thread():
        set_thread_count(1)
        try:
            return plain()
        finally:
            set_thread_count(2)

    settings = [plain, wide, direct, one_thread]
    first = [setting() for setting in settings]
    assert first[0] != first[1]
    assert first[0] != first[2]
    for order in (settings[::-1], settings, settings[::2] + settings[1::2]):
        for setting in order:
            assert setting() == first[settings.index(setting)]
    with float64_sums():  # the wide sums are wide, whatever ran before
        y, *_ = run()
    exact = ops.conv2d.reference(x.astype(float), w.astype(float), None, 1, 1)
    assert (abs(y - exact) <= 2.0**-24 * abs(exact) + 1e-12).all()
