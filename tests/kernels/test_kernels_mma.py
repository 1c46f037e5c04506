"""Convolutions on tensor cores, run by the simulator, against the float64 definition.

Two gates: norm-wise, and element by element the bound that is proved from the operands' rounding. A
GPU's matrix instructions do not round as the simulator's do, so nothing here compares bits of the
two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from kernel_runs import last

from gpuconv import ops
from gpuconv.ops import tensor_cores
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.ops.conv2d_launch_mma import FORMATS, TILES, tile_of, weight_tile
from gpuconv.ops.statistics import conv2d_statistics
from gpuconv.shapes import window

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

from gpuconv.cuda.sim import SimRuntime  # noqa: E402

SLOW = pytest.mark.slow
BITS = {"tf32": 11, "bf16": 8, "fp16": 11}  # of a mantissa
NORMS = {"tf32": 6e-4, "bf16": 4.5e-3, "fp16": 8e-4}  # fp16: 2e-4 of it the result's own rounding
POSITIVE = 1e-3  # TF32 of positive data: what is cut has one sign


@dataclass(frozen=True)
class Case:
    """Sizes of a convolution. positive: data without signs."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    bias: bool = True
    positive: bool = False


# Tiles, and one more and one less; few channels; strides, dilations, groups, filters of odd counts.
CASES = {
    "few": Case(2, 16, 9, 7, 24, 3, 3, 1, 1),
    "phases": Case(2, 3, 11, 8, 10, 5, 3, (2, 1), (2, 0)),
    "one channel": Case(2, 1, 9, 8, 6, 5, 5),
    "six": Case(3, 6, 8, 9, 16, 3, 2, 1, (0, 1)),
    "twelve": Case(1, 12, 7, 7, 17, 2, 3, (1, 2), 1, bias=False),
    "groups": Case(2, 24, 9, 9, 40, 3, 3, (3, 2), 1, 2, 2),
    "dilated": Case(1, 32, 10, 11, 33, 3, 3, 1, (2, 4), (2, 4)),
    "a stride past the window": Case(1, 8, 9, 9, 8, 2, 2, 3),
    "pointwise": Case(2, 72, 8, 9, 64, 1, 1),
    "a whole image": Case(5, 16, 4, 3, 20, 4, 3),
    "64 channels": Case(2, 64, 9, 8, 130, 3, 3, 2, 1),
    "a tile's edge": Case(1, 40, 8, 8, 65, 3, 3, 1, 1),
    "one tap a tile": Case(3, 128, 6, 7, 128, 3, 3, 1, 1),
    "split": Case(4, 8, 17, 19, 8, 3, 3, 1, 1),
    "positive": Case(2, 64, 7, 9, 32, 3, 3, 1, 1, positive=True),
    "window of 11x11": Case(1, 3, 23, 21, 16, 11, 11, 4, 2),
    "the largest window": Case(1, 4, 17, 18, 8, 16, 15, 1, (3, 2)),
}
DEFAULT = ("bf16", "phases")


def stored(a, precision):
    """Floats rounded to the precision's stored numbers, as its arrays hold them."""
    a = np.asarray(a, np.float32)
    if precision == "bf16":
        bits = a.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return a.astype(FORMATS[precision].dtype)


def floats(a, precision):
    if precision == "bf16":
        a = (a.astype(np.uint32) << 16).view(np.float32)
    return a.astype(np.float64)


class Run:
    """One convolution in a precision: its arrays, exact results and those of the kernels."""

    def __init__(self, precision, case, seed=0):
        self.precision, self.case = precision, case
        rng = np.random.default_rng([7, seed])

        def draw(*shape):
            a = rng.standard_normal(shape)
            return np.asarray(abs(a) if case.positive else a, np.float32)

        c = case
        self.geometry = (c.stride, c.padding, c.dilation)
        self.window = window((c.R, c.S), *self.geometry)
        w_shape = (c.K, c.C // c.groups, c.R, c.S)
        self.conv = Conv2dShape.of((c.N, c.C, c.H, c.W), w_shape, self.window, c.groups)
        P, Q = self.conv.P, self.conv.Q
        self.w, self.b = draw(*w_shape), draw(c.K) if c.bias else None
        self.x, self.dy, self.rest = (
            stored(draw(*shape), precision)
            for shape in ((c.N, c.C, c.H, c.W), (c.N, c.K, P, Q), (c.N, c.C, c.H, c.W))
        )

    def image(self, on, array):
        """On the device, its channels last."""
        return on.as_nchw(on.asarray(last(array)))

    def kernels(self, order="forward", seed=0, check=False, on=None, wanted=("y", "dx", "dw")):
        """(y, dx, dw, db) as NumPy arrays of the precision's storage; None what is not wanted."""
        on = on or SimRuntime(check=check, order=order, seed=seed)
        x, dy, rest = (self.image(on, a) for a in (self.x, self.dy, self.rest))
        w, b = on.asarray(self.w), None if self.b is None else on.asarray(self.b)
        given, y, gradients = (on, self.conv, self.precision), None, (None, None, None)
        if "y" in wanted:
            y, _ = tensor_cores.forward(*given, x, w, b, False)
        if "dw" in wanted:
            how = b is not None, "dx" in wanted, rest, True
            gradients = tensor_cores.backward(*given, dy, x, w, *how)
        return tuple(None if a is None else sim.asnumpy(a) for a in (y, *gradients))

    def compare(self, found, missing=("db",)):
        p, case = self.precision, self.case
        images = [floats(a, p) for a in (self.dy, self.x, self.rest)]
        w = self.w.astype(np.float64)
        b = np.zeros(case.K) if self.b is None else self.b.astype(np.float64)
        options = (*self.geometry, case.groups)
        # a unit of an operand's rounding; TF32 is cut where it is not rounded, up to twice as much
        unit = 2.0 ** -BITS[p]
        of_image, of_filter = (2 * unit if p == "tf32" else 0.0), unit
        of_result = 0.0 if p == "tf32" else unit
        results = []
        for take in (lambda a: a, abs):
            dy, x, rest = map(take, images)
            y = ops.conv2d.reference(x, take(w), take(b), *options)
            gradients = ops.conv2d_backward.reference(
                dy, x, take(w), take(b), *options, None, None, True, rest, False
            )
            results.append((y, *gradients))
        exact, sizes = list(results[0]), results[1]
        exact[1] = np.where(images[1] <= 0, 0, exact[1])
        dot = case.R * case.S
        terms = (dot * case.C, dot * case.K, images[0].size, images[0].size)
        product_unit = (1 + of_image) * (1 + of_filter) - 1
        units = (product_unit, product_unit, 2 * of_image, of_image)
        for name, got, want, size, count, each, out in zip(
            ("y", "dx", "dw", "db"), found, exact, sizes, terms, units,
            (of_result, of_result, 0, 0), strict=True,
        ):  # fmt: skip
            if got is None:
                assert name in missing
                continue
            got = floats(got, p) if name in ("y", "dx") else got.astype(np.float64)
            each += (count + 3) * 2.0**-23
            bound = (each + out * (1 + each)) * size + 2.0**-24
            assert not (~(abs(got - want) <= bound)).any(), name
            gate = POSITIVE if case.positive and p == "tf32" else NORMS[p]
            assert np.linalg.norm(got - want) <= gate * np.linalg.norm(want), name


EVERY = list(product(FORMATS, CASES))
CHOSEN = [pytest.param(*each, marks=() if each == DEFAULT else SLOW) for each in EVERY]


@pytest.mark.parametrize(("precision", "name"), CHOSEN)
def test_all_passes(precision, name):
    run = Run(precision, CASES[name])
    run.compare(run.kernels())


@SLOW
@pytest.mark.parametrize(("precision", "name"), EVERY)
def test_the_order_of_blocks_and_threads_changes_no_bit_and_there_are_no_races(precision, name):
    run = Run(precision, CASES[name], 1)
    first = run.kernels()
    for order, seed, check in (("reverse", 0, True), ("shuffled", 3, False)):
        for a, b in zip(first, run.kernels(order, seed, check), strict=True):
            assert a is b is None or a.tobytes() == b.tobytes()


def test_tiles():
    """Large layers take large tiles, no column of which is idle; few pixels the smallest."""
    assert tile_of(128 * 56 * 56, 64, 1) == (128, 64)
    assert tile_of(128 * 28 * 28, 128, 1) == (128, 128)
    assert tile_of(128 * 14 * 14, 256, 1) == (128, 128)
    assert tile_of(128 * 28 * 28, 512, 1) == (128, 256)
    assert tile_of(128 * 56 * 56, 192, 1) == (128, 64)
    assert tile_of(64, 512, 1) == (64, 64)
    assert weight_tile(64, 64, 576) == (64, 64)
    assert weight_tile(128, 128, 1152) == (128, 128)
    assert weight_tile(128, 64, 576) == (128, 64)
    assert [tile for tile, _ in TILES] == sorted((tile for tile, _ in TILES), reverse=True)


class Counted(SimRuntime):
    """Its launches are counted."""

    def build(self, text, launch):
        return sim.Module(text, launch.options, name=launch.file, count=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("name", ["64 channels", "one tap a tile", "twelve"])
def test_shared_memory_has_no_bank_conflicts(precision, name):
    """No access has, of the main loop and of the results."""
    on, run = Counted(), Run(precision, CASES[name])
    run.kernels(on=on)
    for (file, _), module in on._modules.items():
        if not file.startswith("conv_mma"):
            continue
        (kernel,) = module.kernels
        counters, seen = module.counters(kernel), set()
        executed = zip(counters._info.executed, counters.instructions(), strict=True)
        for one, counts in executed:
            if counts["shared_requests"]:
                seen.add(one.text.split(".")[0])
                assert counts["shared_conflicts"] == 0, (file, one.text)
        assert {"cp", "st"} <= seen or "weight" in file
        assert "ldmatrix" in seen or (precision == "tf32" and "ld" in seen)


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMATS)
def test_the_moments_are_those_of_the_stored_output(precision):
    case = Case(2, 32, 13, 11, 72, 3, 3, 1, 1)
    run = Run(precision, case)
    x, w, b = sim.asarray(floats(run.x, precision).astype(np.float32)), run.w, run.b + 30
    given = x, sim.asarray(w), sim.asarray(b), *run.geometry
    y, mean, var, *_ = conv2d_statistics(*given, precision=precision)
    y = floats(sim.asnumpy(y), precision)
    assert np.abs(sim.asnumpy(mean) - y.mean((0, 2, 3))).max() < 1e-5
    np.testing.assert_allclose(sim.asnumpy(var), y.var((0, 2, 3)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize(("rows", "inside", "out"), [(70, 200, 136), (9, 1200, 65)])
def test_linear_layers(precision, rows, inside, out, monkeypatch):
    """Against float64, with ReLU; TF32 where few rows would take other kernels too."""
    monkeypatch.setattr(tensor_cores, "few_rows", lambda conv: False)
    rng = np.random.default_rng(rows)
    shapes = (rows, inside), (out, inside), out
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    x = floats(stored(x, precision), precision)
    y = ops.linear(*map(sim.asarray, (x.astype(np.float32), w, b)), "relu", precision)
    exact = ops.linear.reference(x, *(a.astype(np.float64) for a in (w, b)), "relu")
    error = floats(sim.asnumpy(y), precision) - exact
    assert np.linalg.norm(error) <= NORMS[precision] * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"precision": "fp8"},
            "one of 'ieee', 'tf32', 'bf16', 'fp16', got 'fp8'",
        ),
        ({"precision": "bf16", "activation": "tanh"}, "only None and 'relu' are fused in 16 bits"),
    ],
)
def test_wrong_precisions(given, words):
    x, w = sim.zeros((1, 8, 4, 4)), sim.zeros((8, 8, 3, 3))
    with pytest.raises(ValueError, match=words):
        ops.conv2d(x, w, **given)


def test_the_cpu_has_float32_alone():
    x, w = np.zeros((1, 8, 4, 4), np.float32), np.zeros((8, 8, 3, 3), np.float32)
    with pytest.raises(ValueError, match="precision='tf32' is for arrays on sim and cuda"):
        ops.conv2d(x, w, precision="tf32")
