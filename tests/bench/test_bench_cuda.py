"""The GPU's clock and measurements, over the stand-in for CuPy: no GPU is involved, the times are
the simulator's and mean nothing; what is tested is what is launched, checked and refused.
"""

import kernel_runs
import numpy as np
import pytest
import simulated
import standin_cupy
from test_kernels_build import each_architecture, main_loop

from gpuconv import ops
from gpuconv.arrays import to_device, to_numpy
from gpuconv.bench import cuda, measure, workloads
from gpuconv.bench.cases import parse
from gpuconv.bench.ceilings import Ceilings
from gpuconv.cuda.runtime import runtime
from gpuconv.errors import DeviceError
from gpuconv.sim import to_cubin


@pytest.fixture
def clock(monkeypatch):
    standin_cupy.install(monkeypatch)
    yield cuda.Clock(runtime("cuda"), flushed=4096)
    runtime.cache_clear()


def rows(clock, words, *passes, **how):
    given = workloads.of_case(parse(words), passes)
    return [measure.measure(workload, "cuda", 0.001, clock, **how) for workload in given]


def names(row):
    return [name for name, _ in row.kernels]


def test_the_passes_of_a_convolution_are_parted_by_what_they_launch(clock):
    forward, data, weight = rows(clock, "conv 2x3x9x8 4 3x3 dilation=2", each=True)
    assert names(forward) == ["conv2d_forward_simt"]
    assert names(data) == ["conv2d_backward_data_simt"]
    assert names(weight) == ["conv2d_backward_weight_simt", "conv2d_backward_bias_partials"]
    for row in (forward, data, weight):
        assert row.status == "ok"
        assert 0 < row.times.low <= row.times.median <= row.times.high
        assert row.times.count >= 7
        assert all(times.median > 0 for _, times in row.kernels)
    (whole,) = rows(clock, "conv 2x3x9x8 4 3x3 dilation=2", "backward")
    assert names(whole) == names(data) + names(weight)


def test_layouts_differ_by_the_conversion(clock):
    (plain,) = rows(clock, "conv 2x4x7x7 4 3x3 stride=2", "forward")
    (converted,) = rows(clock, "conv 2x4x7x7 4 3x3 stride=2", "forward", layout="nchw")
    assert names(converted) == ["transpose", "transpose", *names(plain)]


@pytest.mark.parametrize(
    "words", ["relu 2x4x5x6", "cross_entropy 4x10", "adam 30x4", "lrn 1x7x3x3 5"]
)
def test_other_operations(clock, words):
    for row in rows(clock, words):
        assert row.status == "ok" if row.kernels else row.status == "no kernel"


ON_TENSOR_CORES = [  # whose kernels take long to compile
    *(f"conv 2x4x6x5 8 3x3 padding=1 activation=relu precision={p}" for p in ("bf16", "fp16")),
    "conv 2x64x9x8 72 3x3 padding=1 precision=tf32",
    "conv 1x3x9x9 8 5x5 precision=bf16",
    *(f"linear 70x40 72 precision={p}" for p in ("tf32", "bf16", "fp16")),
]
SMALL_PRECISE = [
    "relu 2x8x5x6 precision=bf16", "batch_norm 3x8x5x4 precision=bf16",
    "max_pool 2x8x6x6 3 stride=2 padding=1 precision=bf16", "add 3x4x5 precision=fp16",
    "cast 3x4x5 precision=fp16", "uncast 3x4x5 precision=bf16", "adam 30x4 precision=fp16",
    "sgd_momentum 30x4 precision=fp16",
    *(pytest.param(words, marks=pytest.mark.slow) for words in ON_TENSOR_CORES),
]  # fmt: skip


@pytest.mark.parametrize("words", SMALL_PRECISE)
def test_precisions_are_checked_and_timed(clock, words, monkeypatch):
    """Their results are within the bounds, and the bounds are as narrow as the format allows."""
    monkeypatch.setattr(clock.on, "tensor_cores", True)
    for row in rows(clock, words):
        assert (row.status, bool(row.kernels)) == ("ok", True)
        assert row.share(Ceilings(1.0, 1.0, "", "")) is None or not row.cost.flops
    for workload in workloads.of_case(parse(words)):
        for exact, bound in workload.expected():
            if exact.dtype.kind == "f":
                assert (bound <= 0.008 * np.abs(exact).max()).all()


def test_a_card_without_tensor_cores_says_so(clock):
    for row in rows(clock, "conv 1x3x9x9 8 5x5 precision=bf16"):
        assert row.status.startswith("no kernel: precision='bf16': cuda has no 16-bit kernel for")
        assert row.times is None


def test_what_was_timed_ran_and_wrote_its_results(clock, monkeypatch):
    """The outputs are poisoned before the timed runs, so only they can have made them right."""
    poisoned = []
    real = cuda.Clock.poison
    monkeypatch.setattr(cuda.Clock, "poison", lambda self, a: poisoned.append(a) or real(self, a))
    (row,) = rows(clock, "relu 2x4x5x6", "forward")
    assert row.status == "ok"
    assert len(poisoned) >= 2  # one output for each set of buffers
    monkeypatch.setattr(cuda.Clock, "times", lambda self, sets, seconds: row.times)
    (row,) = rows(clock, "relu 2x4x5x6", "forward")
    assert row.status == "wrong: result 0 has other bits after the timing"
    assert row.times is None


def test_a_wrong_result_is_never_timed(clock, monkeypatch):
    def broken(launch, arguments):
        started(launch, arguments)
        arguments[0]._array.fill(np.nan)

    started = clock.on.start
    monkeypatch.setattr(clock.on, "start", broken)
    monkeypatch.setattr(cuda.Clock, "times", lambda *_: pytest.fail("timed"))
    for row in rows(clock, "relu 2x4x5x6"):
        assert row.times is None
        assert row.status.startswith("wrong: 240 of 240 elements of result 0, the first at (0, 0")


def test_sets_of_buffers_must_agree(clock, monkeypatch):
    calls = []

    def drifting(launch, arguments):
        calls.append(launch)
        started(launch, arguments)
        if len(calls) == 2:
            arguments[0]._array.fill(1.0)

    started = clock.on.start
    monkeypatch.setattr(clock.on, "start", drifting)
    (row,) = rows(clock, "relu 2x4x5x6", "forward")
    assert row.status == "wrong: result 0 has other bits in another set of buffers"


def test_a_device_error_is_not_a_wrong_result(clock):
    standin_cupy.failing.add("launch")
    with pytest.raises(DeviceError, match="the GPU failed at kernel relu_forward"):
        rows(clock, "relu 2x4x5x6")


def test_launches_are_recorded_with_their_arrays_and_only_meanwhile(clock):
    x = to_device(np.float32([-1, 2]), "cuda")
    (workload,) = workloads.of_case(parse("relu 2"), ("forward",))
    (y,), launches, _ = measure.recorded(clock.on, workload, (x,))
    assert [launch.kernel for launch, _ in launches] == ["relu_forward"]
    clock.poison(y)
    assert np.isnan(to_numpy(y)).all()
    clock.on.start(*launches[0])
    np.testing.assert_array_equal(to_numpy(y), [0, 2])
    ops.relu(x)
    assert len(launches) == 1


def test_ceilings(clock, monkeypatch):
    found = clock.ceilings(0.001, rounds=16)
    assert found.flops > 0
    assert found.bytes > 0
    monkeypatch.setattr(cuda, "FLOPS_PER_ROUND", 0)  # as if the kernel had done nothing
    with pytest.raises(ArithmeticError, match="computed a wrong result"):
        clock.ceilings(0.001, rounds=16)


@pytest.mark.parametrize("arch", each_architecture("sm_75", "sm_80", "sm_90a", "sm_120"))
def test_the_arithmetic_ceiling_is_little_but_multiply_adds(arch):
    """In machine code: 128 FFMA a round, as FLOPS_PER_ROUND counts."""
    loop = main_loop(to_cubin(cuda.CEILING.read_text(), (), arch), "fma_ceiling")
    assert 2 * loop["FFMA"] == cuda.FLOPS_PER_ROUND
    assert loop["FFMA"] >= 0.95 * loop.total(), loop


def test_rates_are_work_over_time():
    workload = next(workloads.of_case(parse("conv 2x3x9x8 4 3x3"), ("forward",)))
    times = measure.Times.of([1e-3, 2e-3, 4e-3])
    row = measure.Row("c", "", "forward", "cuda", workload.cost, times=times)
    assert times.median == 2e-3
    assert row.flops == pytest.approx(2 * 2 * 4 * 7 * 6 * 27 / 2e-3)
    assert row.bytes == pytest.approx(4 * (2 * 3 * 72 + 108 + 4 + 2 * 4 * 42) / 2e-3)
    memory = Ceilings(1e12, row.bytes, "", "")  # so fast that the copy is what counts
    assert row.share(memory) == pytest.approx(1)
    assert workload.cost.bound(1e12, row.bytes) == "memory"
    assert row.share(Ceilings(2 * row.flops, 1e12, "", "")) == pytest.approx(0.5)


def test_the_sweeps_of_kernels_run_where_they_are_told(clock, monkeypatch):
    """kernel_runs on device cuda: the same results and guards, through CuPy's calls."""
    import test_kernels_conv
    import test_kernels_optim
    import test_kernels_pool

    monkeypatch.setattr(kernel_runs, "DEVICE", "cuda")
    monkeypatch.setattr(kernel_runs, "module", None)
    for seed in (0, 1):
        test_kernels_conv.compare(*test_kernels_conv.sweep_case(seed))
        test_kernels_pool.compare(*test_kernels_pool.sweep_case(seed))
    test_kernels_optim.test_adam(test_kernels_optim.Adam, False, True)
    assert {"conv2d_backward_weight_simt", "max_pool2d_backward", "adam"} <= set(
        standin_cupy.launched
    )


def test_operations_run_where_they_are_told(clock, monkeypatch):
    import test_runtime_ops

    monkeypatch.setattr(test_runtime_ops, "DEVICE", "cuda")
    test_runtime_ops.test_convolutions(1)
    test_runtime_ops.test_linear("relu")
    assert "conv2d_forward_simt" in standin_cupy.launched
    assert simulated.DEVICE == "sim"
