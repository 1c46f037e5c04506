"""Arrays of the simulated device: conversions, views, and implicit uses by NumPy, all refused."""

from __future__ import annotations

import gc
import operator

import numpy as np
import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")


@pytest.mark.parametrize(
    "dtype", ["f4", "f8", "f2", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]
)
def test_round_trip(dtype):
    host = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for given in (
        host,
        host.T,
        host[:, ::-1],
        host[:, :, 1:3],
        np.broadcast_to(host[0], (5, 3, 4)),
        host[0, 0, 0],
    ):
        back = sim.asnumpy(sim.asarray(given))
        assert np.array_equal(back, given)
        assert back.dtype == given.dtype
        assert back.shape == given.shape


def test_attributes():
    x = sim.zeros((2, 3, 4), np.int16)
    assert (x.shape, x.ndim, x.size, x.itemsize, x.nbytes, x.dtype, len(x)) == (
        (2, 3, 4),
        3,
        24,
        2,
        48,
        np.int16,
        2,
    )
    assert x.ptr % 256 == 0
    assert repr(x) == "sim.Array(shape=(2, 3, 4), dtype=int16)"
    assert sim.empty(3).dtype == np.float32
    assert sim.empty((0, 4)).nbytes == 0
    assert not sim.asnumpy(sim.zeros(5)).any()


def test_asarray_copies_and_converts():
    host = np.arange(4.0)
    x = sim.asarray(host, np.float32)
    host[:] = 9
    assert sim.asnumpy(x).tolist() == [0, 1, 2, 3]
    assert sim.asarray(x) is x
    assert sim.asarray(x, np.int32).dtype == np.int32
    assert sim.asarray([[1, 2]]).shape == (1, 2)


def test_views_share_memory():
    x = sim.asarray(np.arange(12.0, dtype=np.float32))
    y = x.reshape(3, 4)
    y[1].fill(7)
    assert sim.asnumpy(x).tolist() == [0, 1, 2, 3, 7, 7, 7, 7, 8, 9, 10, 11]
    assert sim.asnumpy(y[1:]).shape == (2, 4)
    assert sim.asnumpy(y[1:, 2]).tolist() == [7, 10]
    assert y[-1].ptr == x.ptr + 32
    assert x.reshape((2, -1)).shape == (2, 6)
    assert sim.asnumpy(x.view(np.uint32))[0] == 0
    copy = x.copy()
    copy.fill(0)
    assert sim.asnumpy(x)[1] == 1


def test_fresh_memory_is_poisoned():
    assert np.isnan(sim.asnumpy(sim.empty(1000))).all()


def test_memory_is_released():
    from gpuconv.sim import memory

    def count() -> int:
        gc.collect()
        return len(memory.live())

    before = count()
    x = sim.zeros(10)
    y = x.reshape(2, 5)
    del x
    assert count() == before + 1
    del y
    assert count() == before


BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.matmul,
    operator.pow,
    operator.mod,
    operator.eq,
    operator.lt,
    operator.iadd,
    operator.and_,
]


@pytest.mark.parametrize("function", BINARY)
def test_operators_are_refused(function):
    x = sim.zeros(3)
    for other in (np.ones(3, np.float32), 2.0, x):
        with pytest.raises(TypeError, match="asnumpy"):
            function(x, other)
        if function is not operator.iadd and not isinstance(other, sim.Array):
            with pytest.raises(TypeError, match="asnumpy"):
                function(other, x)


@pytest.mark.parametrize(
    "use",
    [
        np.asarray,
        np.array,
        np.sum,
        np.sqrt,
        np.concatenate,
        float,
        int,
        bool,
        list,
        operator.neg,
        operator.index,
        lambda x: np.add(np.ones(3), x),
        lambda x: np.stack([x, x]),
        lambda x: np.ones(3).__iadd__(x),
        lambda x: np.copyto(np.ones(3), x),
        lambda x: operator.setitem(np.ones(3), slice(None), x),
        lambda x: operator.setitem(x, 0, 1),
        lambda x: np.allclose(x, 0),
        lambda x: np.matmul(np.ones((3, 3)), x),
        lambda x: sum(x),
    ],
)
def test_implicit_conversion_is_refused(use):
    with pytest.raises(TypeError):
        use(sim.zeros(3))


def test_wrong_requests():
    with pytest.raises(TypeError, match="asnumpy takes a sim array, got ndarray"):
        sim.asnumpy(np.zeros(3))
    with pytest.raises(TypeError, match="holds numbers"):
        sim.asarray(np.array([object()]))
    with pytest.raises(ValueError, match="cannot reshape"):
        sim.zeros(6).reshape(4, 2)
    with pytest.raises(ValueError, match="lengths >= 0"):
        sim.zeros((2, -1))
    with pytest.raises(ValueError, match="step 1"):
        sim.zeros(6)[::2]
    with pytest.raises(IndexError):
        sim.zeros(6)[6]
    with pytest.raises(TypeError, match="takes integers and slices"):
        sim.zeros((6, 2))[0, None]
    with pytest.raises(ValueError, match="bytes"):
        sim.zeros(6).view(np.float64)
