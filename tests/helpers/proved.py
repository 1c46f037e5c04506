"""Proves what a network computes in float32, operation by operation.

Within `Proof()` each result of an operation is compared with its definition in float64 on the very
same inputs, within the bounds of `bounds.py`. It is then replaced by the definition's result,
rounded to float32: so all devices go on from equal numbers, no rounding decides a ReLU, and whole
networks must give equal bits on all devices, wherever and in whatever order they compute.
"""

import contextlib
import ctypes
from collections import Counter
from unittest import mock

import bounds
import numpy as np

from gpuconv.arrays import device_of, to_numpy
from gpuconv.ops import in_place
from gpuconv.ops.op import Op

# Arrays that an operation overwrites, by its argument's number.
IN_PLACE = {"accumulate": (0,), "assign": (0,), "batch_norm2d_track": (0, 1)}
IN_PLACE |= {"batch_norm2d_statistics": (1, 2), "conv2d_statistics": (7, 8)}


class Proof(contextlib.ExitStack):
    """checked: how often each operation was compared. known: what is right for calls so far, to
    be shared by runs of the same network.
    """

    def __init__(self, known):
        super().__init__()
        self.checked, self.known, self.inside = Counter(), known, False

    def __enter__(self):
        proof, plain = self, Op.__call__

        def call(op, *args, **kwargs):
            values = op._bound(args, kwargs)
            return proof.run(op.__name__, values, lambda: plain(op, *values))

        def reference(op, *args, **kwargs):
            values = op._bound(args, kwargs)
            return proof.run(op.__name__, values, lambda: op.definition(*values), judged=False)

        self.enter_context(mock.patch.object(Op, "__call__", call))
        self.enter_context(mock.patch.object(Op, "reference", reference))
        for name, more in (("relu_backward", ()), ("batch_norm2d_backward", (True,))):
            into = getattr(in_place, f"{name}_into")
            into = self.into(name, into, more)
            self.enter_context(mock.patch.object(in_place, f"{name}_into", into))
        return super().__enter__()

    def into(self, name, function, more):
        def run(*values):
            return self.run(name, (*values, *more), lambda: function(*values), (0,))

        return run

    def run(self, name, values, function, overwritten=None, judged=True):
        """judged: the definition itself, in float32, need not sum as carefully as the others."""
        if self.inside:  # what an operation calls itself is part of it
            return function()
        before = [copy_of(a) for a in values]
        self.inside = True
        try:
            result = function()
        finally:
            self.inside = False
        free = IN_PLACE.get(name, ()) if overwritten is None else overwritten
        for number, (old, value) in enumerate(zip(before, values, strict=True)):
            if isinstance(old, np.ndarray) and number not in free:
                np.testing.assert_array_equal(to_numpy(value), old, err_msg=f"{name} {number}")
        key = name, *(hashable(a) for a in before)
        if key not in self.known:
            self.known[key] = bounds.EXPECTED[name](*map(wide, before))
        found = result if isinstance(result, tuple) else (result,)
        for array, (exact, bound) in zip(found, self.known[key], strict=True):
            if judged:
                bounds.assert_within(copy_of(array), exact, bound, name)
            if exact is not None:
                write(array, exact)
        self.checked[name] += 1
        return result


def copy_of(a):
    if isinstance(a, tuple):
        return tuple(map(copy_of, a))
    return a if device_of(a) is None else np.array(to_numpy(a))


def hashable(a):
    if isinstance(a, tuple):
        return tuple(map(hashable, a))
    return (a.shape, a.tobytes()) if isinstance(a, np.ndarray) else a


def wide(a):
    if isinstance(a, tuple):
        return tuple(map(wide, a))
    if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
        return a
    with np.errstate(invalid="ignore"):  # memory that is about to be overwritten
        return a.astype(np.float64)


def write(array, value):
    """Overwrite an array of NumPy or of the simulator."""
    if device_of(array) == "sim" and array.size:
        lengths = zip(array.shape, array.strides, strict=True)
        nbytes = array.itemsize + sum((length - 1) * stride for length, stride in lengths)
        memory = (ctypes.c_char * nbytes).from_address(array.ptr)
        array = np.ndarray(array.shape, array.dtype, memory, 0, array.strides)
    array[...] = value
