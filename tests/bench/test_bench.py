"""`gpuconv bench` without a GPU: what cases mean, what costs count, what is refused and shown."""

import json

import numpy as np
import pytest
from loops import window_starts

from gpuconv import models, ops
from gpuconv.bench import ceilings, measure, workloads
from gpuconv.bench.cases import OPERANDS, PRECISIONS, Case, in_precisions, network, parse, standard
from gpuconv.bench.clock import Times, cpu_times, repetitions
from gpuconv.cli.main import main
from gpuconv.ops.cost import Cost, like
from gpuconv.ops.op import Op

SMALL = [
    "conv2d 2x3x9x8 4 3x2 stride=2x1 padding=1",
    "conv2d 2x4x9x8 4 3x2 groups=2 activation=relu",
    "conv2d_relu_max_pool2d 2x3x9x8 4 3x3",
    "linear 5x7 3",
    "linear 5x7 3 activation=relu",
    "max_pool2d 2x3x9x8 3 stride=2 padding=1",
    "avg_pool2d 2x3x9x8 2x3",
    "sum_pool2d 2x3x9x8 2",
    "adaptive_avg_pool2d 2x3x9x8 2x3",
    "local_response_norm 2x7x4x5 5",
    "batch_norm2d 3x4x5x6",
    "softmax 4x5",
    "batch_norm2d_track 7",
    "assign 2x3x4x5",
    "image_batch 2x3x4x5",
    "cross_entropy 4x10",
    "loss_and_gradient 4x10",
    "half_squared_error 4x10",
    "hinge 4x10",
    *(f"{name} 30x4" for name in ("sgd", "sgd_momentum", "adam", "adam_amsgrad", "clip_grad_norm")),
]
BEGIN = {words.split()[0] for words in SMALL} | {"cast", "uncast"}
SMALL += [f"{name} 3x4x5" for name in OPERANDS if name not in BEGIN]
# For the devices sim and cuda; every operation that has another precision, in each.
PRECISE = [
    f"{words} precision={precision}"
    for words in [*SMALL, "cast 3x4x5", "uncast 3x4x5"]
    for precision in PRECISIONS.get(words.split()[0], ())
]
OPERATIONS = {name for name in ops.__all__ if isinstance(getattr(ops, name), Op)}


def test_every_operation_has_a_benchmark_and_a_cost():
    forward = {name for name in OPERATIONS if not name.endswith("_backward")}
    assert set(OPERANDS) == forward | set(workloads.OTHERS)
    assert {case.op for case in standard(1) + in_precisions(1)} == set(OPERANDS)
    assert {parse(words).op for words in SMALL + PRECISE} == set(OPERANDS)
    for name in OPERATIONS:
        assert getattr(ops, name)._cost is not None, f"{name} has no @cost"


# ---- costs against loops -------------------------------------------------------------------------

WINDOWS = [  # shape, filters, kernel, stride, padding, dilation, groups
    ((2, 4, 9, 8), 6, (3, 2), (2, 1), ((1, 1), (2, 2)), (1, 2), 2),
    ((1, 3, 7, 7), 2, (1, 1), (2, 3), ((0, 0), (0, 0)), (1, 1), 1),
    ((3, 2, 5, 6), 2, (2, 3), (4, 5), ((1, 1), (0, 0)), (2, 1), 2),
    ((1, 1, 11, 4), 1, (5, 4), (3, 1), ((2, 2), (3, 3)), (1, 1), 1),
]


def counted_by_loops(shape, kernel, stride, pads, dilation):
    """(taps inside the image, pixels that a tap reaches, outputs), of one image's channel."""
    axes = [
        window_starts(shape[2 + a], kernel[a], stride[a], *pads[a], dilation[a]) for a in (0, 1)
    ]
    taps, pixels = 0, set()
    for top in axes[0]:
        for left in axes[1]:
            for r in range(kernel[0]):
                for s in range(kernel[1]):
                    h, w = top + r * dilation[0], left + s * dilation[1]
                    if 0 <= h < shape[2] and 0 <= w < shape[3]:
                        taps += 1
                        pixels.add((h, w))
    return taps, len(pixels), len(axes[0]) * len(axes[1])


@pytest.mark.parametrize(("shape", "K", "kernel", "stride", "pads", "dilation", "groups"), WINDOWS)
def test_a_convolutions_cost_counted_tap_by_tap(shape, K, kernel, stride, pads, dilation, groups):
    N, C = shape[:2]
    taps, pixels, outputs = counted_by_loops(shape, kernel, stride, pads, dilation)
    x, w, b = like(shape), like((K, C // groups, *kernel)), like((K,))
    geometry = (stride, pads, dilation, groups)
    multiply_adds = N * K * C // groups * taps
    read, filters = N * C * pixels, K * C // groups * kernel[0] * kernel[1]
    y = N * K * outputs
    found = ops.conv2d.work(x, w, b, *geometry)
    assert found == Cost(2 * multiply_adds, 4 * (read + filters + K + y))
    assert ops.conv2d.work(x, w, None, *geometry).bytes == found.bytes - 4 * K
    dy = like(ops.conv2d(np.zeros(shape), np.zeros(w.shape), None, *geometry).shape)
    both = ops.conv2d_backward.work(dy, x, w, b, *geometry)
    whole = N * C * shape[2] * shape[3]
    assert both == Cost(4 * multiply_adds, 4 * (y + read + filters + whole + filters + K))
    weights = ops.conv2d_backward.work(dy, x, w, b, *geometry, need_dx=False)
    assert weights == Cost(2 * multiply_adds, 4 * (y + read + filters + K))


@pytest.mark.parametrize(("shape", "K", "kernel", "stride", "pads", "dilation", "groups"), WINDOWS)
def test_a_pools_cost_counted_tap_by_tap(shape, K, kernel, stride, pads, dilation, groups):
    pads = tuple(tuple(min(p, k // 2) for p in side) for side, k in zip(pads, kernel, strict=True))
    planes = shape[0] * shape[1]
    _, pixels, outputs = counted_by_loops(shape, kernel, stride, pads, dilation)
    geometry = (kernel, stride, pads, dilation)
    assert ops.max_pool2d.work(like(shape), *geometry).bytes == planes * (4 * pixels + 5 * outputs)
    assert ops.avg_pool2d.work(like(shape), *geometry).bytes == planes * 4 * (pixels + outputs)
    y = ops.sum_pool2d(np.zeros(shape), *geometry)
    back = ops.sum_pool2d_backward.work(like(y.shape), shape, *geometry)
    assert back == Cost(0, 4 * planes * (outputs + shape[2] * shape[3]))


def test_a_linear_layers_cost():
    x, w, b, dy = like((5, 7)), like((3, 7)), like((3,)), like((5, 3))
    assert ops.linear.work(x, w, b) == Cost(2 * 5 * 7 * 3, 4 * (35 + 21 + 3 + 15))
    whole = ops.linear_backward.work(dy, x, w, b)
    assert whole == Cost(4 * 5 * 7 * 3, 4 * (15 + 35 + 21 + 35 + 21 + 3))
    data, weight = (
        found for _, found in workloads.counted(parse("linear 5x7 3"), workloads.PASSES[2:])
    )
    assert data == Cost(2 * 5 * 7 * 3, 4 * (15 + 21 + 35))
    assert weight == Cost(2 * 5 * 7 * 3, 4 * (15 + 35 + 21 + 3))


def test_the_fused_costs_have_no_output_of_the_convolution():
    x, w, b, y = like((2, 3, 9, 8)), like((4, 3, 3, 3)), like((4,)), like((2, 4, 3, 3))
    conv = ops.conv2d.work(x, w, b)
    found = ops.conv2d_relu_max_pool2d.work(x, w, b)
    assert found == Cost(conv.flops, 4 * (2 * 3 * 9 * 8 + 4 * 27 + 4 + y.size) + y.size)
    argmax = like(y.shape, np.uint8)
    back = ops.conv2d_relu_max_pool2d_backward.work(y, y, argmax, x, w, b)
    arrays = 2 * y.size + 2 * (2 * 3 * 9 * 8) + 2 * 4 * 27 + 4
    assert back == Cost(2 * conv.flops, 4 * arrays + y.size)


WHOLE = [words for words in SMALL if not words.startswith(("conv2d", "linear"))]
WHOLE = [words.replace("avg_pool2d 2x3x9x8", "avg_pool2d 2x3x8x9") for words in WHOLE]
WHOLE = [words.replace("sum_pool2d 2x3x9x8", "sum_pool2d 2x3x8x6") for words in WHOLE]
SLOTS = {"sgd_momentum": 1, "adam": 2, "adam_amsgrad": 3}  # read and written


@pytest.mark.parametrize("words", WHOLE)
def test_bytes_are_those_of_what_goes_in_and_comes_out(words):
    """By the arrays themselves, where every pixel is in some window."""
    case = parse(words)
    for workload in workloads.of_case(case):
        copies = tuple(a.copy() if isinstance(a, np.ndarray) else a for a in workload.arguments)
        total = sum(a.nbytes for a in copies if isinstance(a, np.ndarray))
        if case.op == "clip_grad_norm":
            total = copies[1].nbytes  # the gradient alone
        found = [np.asarray(a) for a in workload.prepare(copies)()]
        total += sum(a.nbytes if a.ndim else 4 for a in found)  # a loss is one float
        total += 2 * SLOTS.get(case.op, 0) * found[0].nbytes
        if case.op == "assign":
            total -= copies[0].nbytes  # what is overwritten is not read
        if (case.op, workload.direction) == ("batch_norm2d", "backward"):
            total -= 4 * case.x[1]  # b is not read without an activation
        assert workload.cost == Cost(0, total), workload.direction


def test_every_operation_that_stores_16_bits_is_timed_so():
    """What `stores_16` says, and the operations with a precision, in every format there is."""
    timed = {(case.op, case.precision) for case in in_precisions(1)}
    for name in OPERATIONS:
        op = getattr(ops, name)
        forward = name.removesuffix("_backward")
        if "precision" in op.parameters:
            assert timed >= {(forward, precision) for precision in ("tf32", "bf16", "fp16")}
        elif op.stores_16 and forward in OPERANDS:
            assert (forward, "bf16") in timed
    assert not {case.precision for case in standard(1)} - {"ieee"}


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_bytes_of_16_bits(name):
    """Images are two bytes an element; filters, biases and their gradients four."""
    found = dict(workloads.counted(parse(f"conv 2x3x9x8 4 3x3 padding=1 precision={name}")))
    x, y, w = 2 * 3 * 72, 2 * 4 * 72, 4 * 27
    assert found["forward"].bytes == 2 * (x + y) + 4 * (w + 4)
    assert found["backward-data"].bytes == 2 * (x + y) + 4 * w
    assert found["backward-weight"].bytes == 2 * (x + y) + 4 * (w + 4)
    halved = dict(workloads.counted(parse(f"max_pool 2x3x8x8 2 precision={name}")))
    assert halved["forward"].bytes == 2 * 3 * (2 * 64 + 3 * 16)


@pytest.mark.parametrize("words", SMALL + PRECISE)
def test_counted_work_allocates_nothing_and_is_that_of_the_timed_work(words):
    case = parse(words)
    assert list(workloads.counted(case)) == [(w.direction, w.cost) for w in workloads.of_case(case)]


def test_counted_work_of_what_no_machine_could_hold():
    (found,) = workloads.counted(parse("conv 99999x512x1000x1000 512 3x3"), ("forward",))
    assert found[1].flops == 2 * 99999 * 512 * 512 * 998 * 998 * 9


# ---- cases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", SMALL + PRECISE)
def test_cases_are_what_they_print(words):
    assert parse(str(parse(words))) == parse(words)


def test_short_names_and_options():
    assert parse("conv 1x2x3x4 5 6x7", stride=(1, 1)) == Case("conv2d", (1, 2, 3, 4), 5, (6, 7))
    assert parse("max_pool 1x2x3x4 2").op == "max_pool2d"
    assert parse("cross 2x3").op == "cross_entropy"
    assert parse("conv 1x2x30x40 5 6 padding=same").padding == "same"
    assert parse("conv 1x2x30x40 5 6 padding=1x2").padding == (1, 2)


@pytest.mark.parametrize(
    "name",
    [
        "lenet",
        pytest.param("alexnet_2012", marks=pytest.mark.slow),
        "resnet18",
        "googlenet",
        "densenet121",
    ],
)
def test_a_networks_cases_are_its_layers(name):
    """Their multiply-adds are the network's own, where each layer counts as often as it occurs."""
    from gpuconv.nn.summary import summary

    model = models.build({"name": name})
    rows = [row for row in summary(model).rows if row.multiply_adds]
    cases = network(name, 3)
    by_label = {case.label: case for case in cases}
    assert {case.op for case in cases} <= set(OPERANDS)
    for row in rows:
        case = by_label.get(row.name)
        if case is not None:
            (found,) = workloads.counted(case, ("forward",))
            with_padding = 2 * 3 * row.multiply_adds
            assert 0.5 * with_padding < found[1].flops <= with_padding
    assert len({str(case) for case in cases}) == len(cases)
    assert sum(row.name in by_label for row in rows) >= 3


# ---- measuring -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", SMALL)
def test_every_operation_is_checked_and_timed_on_the_cpu(words):
    for workload in workloads.of_case(parse(words), ("forward", "backward", *workloads.PASSES[2:])):
        row = measure.measure(workload, "cpu", 0.001)
        assert row.status == "ok"
        assert row.times.median > 0
        assert row.record(measure.Ceilings(1e9, 1e9, "", ""))["share_of_ceiling"] > 0


@pytest.mark.parametrize("words", SMALL)
def test_one_wrong_element_is_noticed(words):
    for workload in workloads.of_case(parse(words)):
        copies = tuple(a.copy() if isinstance(a, np.ndarray) else a for a in workload.arguments)
        found = [np.array(a) for a in workload.prepare(copies)()]
        measure.require_right(workload, found)
        for number in range(len(found)):
            broken = [a.copy() for a in found]
            flat = broken[number].reshape(-1)
            change = 1 if flat.dtype.kind in "iu" else 0.02 * np.abs(flat).max() + 0.01
            flat[-1] += np.asarray(change, flat.dtype)
            with pytest.raises(measure.WrongResult, match=f"1 of {flat.size} elements of result"):
                measure.require_right(workload, broken)
            if flat.dtype.kind == "f":
                flat[-1] = np.nan
                with pytest.raises(measure.WrongResult, match="nan for"):
                    measure.require_right(workload, broken)


def test_a_wrong_result_is_never_timed_on_the_cpu(monkeypatch):
    monkeypatch.setattr(measure, "cpu_times", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(ops.relu, "_cpu", lambda x: x)
    (row,) = [
        measure.measure(w, "cpu", 1) for w in workloads.of_case(parse("relu 9x9"), ("forward",))
    ]
    assert row.times is None
    assert row.flops is row.bytes is row.share(None) is None
    assert row.status.startswith("wrong: ")


def test_a_result_that_changes_voids_its_times(monkeypatch):
    count = iter(range(10**6))
    monkeypatch.setattr(ops.tanh, "_cpu", lambda x: np.tanh(x) + np.float32(next(count) * 1e-12))
    (workload,) = workloads.of_case(parse("tanh 90"), ("forward",))
    workload.arguments[0][:] = 0
    row = measure.measure(workload, "cpu", 0.001)
    assert row.status == "wrong: result 0 has other bits after the timing"


def test_times():
    found = Times.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.median, found.count) == (3.0, 5)
    assert found.low == pytest.approx(1.4)
    assert found.high == pytest.approx(4.6)
    assert found.spread == pytest.approx(3.2 / 3)
    for wrong in ([], [1.0, 0.0], [np.nan], [-1.0]):
        with pytest.raises(ValueError, match="above 0"):
            Times.of(wrong)
    assert (repetitions(1, 20), repetitions(9, 1), repetitions(0, 1)) == (20, 7, 1000)


def test_the_cpus_ceiling_does_the_multiply_adds_it_counts(monkeypatch):
    assert ceilings.chains(3, 2.0, 1.0) == sum(8 * i + 7 for i in range(ceilings.CHAINS))
    threads = ceilings.thread_count()
    flops = 2 * threads * 1000 * ceilings.CHAINS * ceilings.LANES
    assert ceilings.on_all_threads(1000) == flops
    monkeypatch.setattr(ceilings, "chains", lambda *_: 0.0)
    with pytest.raises(ArithmeticError, match="no ceiling"):
        ceilings.on_all_threads(1000)


def test_buffers_take_turns():
    calls = []
    cpu_times([lambda: calls.append(0), lambda: calls.append(1)], 0.0)
    assert calls[:3] == [0, 1, 0]  # each once to warm up, one to guess how many
    assert calls[3:] == [0, 1, 0, 1, 0, 1, 0][: len(calls) - 3] or len(calls) > 10


@pytest.mark.parametrize("words", SMALL[:3])
def test_the_reference_image_by_image_is_the_reference(words):
    for workload in workloads.of_case(parse(words)):
        doubles = [a.astype(np.float64) if getattr(a, "dtype", 0) == np.float32 else a
                   for a in workload.arguments]  # fmt: skip
        whole = workload.chosen(workload.op.reference(*doubles))
        for (exact, _), other in zip(workload.expected(), whole, strict=True):
            assert exact.shape == other.shape
            np.testing.assert_allclose(exact, other, rtol=1e-12, atol=1e-12)


# ---- the command ---------------------------------------------------------------------------------


def test_the_table(capsys, tmp_path):
    path = tmp_path / "rows.json"
    words = ["bench", "conv", "2x3x9x8", "4", "3x3", "--padding", "1", "--seconds", "0.01"]
    assert main([*words, "--device", "cpu", "--json", str(path)]) == 0
    machine, measured, _, header, rule, *rows = capsys.readouterr().out.splitlines()
    assert machine.startswith("cpu: ")
    assert "GB/s" in measured
    assert header.split()[:4] == ["operation", "pass", "device", "time"]
    assert set(rule) == {"-", " "}
    assert [row.split()[5] for row in rows] == ["forward", "backward-data", "backward-weight"]
    found = json.loads(path.read_text())
    assert [row["status"] for row in found["rows"]] == ["ok"] * 3
    # 3 rows of taps reach 25 of 27 rows, columns alike; x, w, b and y in bytes
    cost = {"flops": 2 * 2 * 4 * 3 * 25 * 22, "bytes": 4 * (2 * 3 * 72 + 108 + 4 + 2 * 4 * 72)}
    assert found["rows"][0]["cost"] == cost
    assert found["ceilings"]["flops"] > 1e8


def test_sim_has_no_times(capsys):
    assert main(["bench", "conv", "16x64x56x56", "64", "3x3", "--device", "sim"]) == 0
    said = capsys.readouterr().out
    assert "device sim has no times: this is counted work, and nothing was run" in said
    assert not any(word in said for word in (" ms", " us", "TFLOP/s", "GB/s"))
    (workload,) = workloads.of_case(parse("relu 3x3"), ("forward",))
    for device in ("sim", "reference"):
        with pytest.raises(RuntimeError, match=f"device {device}: it exists to check results"):
            measure.measure(workload, device, 1)


def test_a_wrong_result_gives_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(ops.relu, "_cpu", lambda x: x)
    monkeypatch.setattr(ceilings, "cpu_ceilings", lambda: ceilings.Ceilings(1.0, 1.0, "", ""))
    words = ["bench", "relu", "9x9", "--pass", "forward", "--seconds", "0.01", "--device", "cpu"]
    assert main(words) == 1
    assert "wrong: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("conv", "conv2d takes SHAPE FILTERS KERNEL, got nothing"),
        ("conv 1x2x3 4 3x3", "conv2d takes a shape of N x C x H x W, as 16x64x56x56, got '1x2x3'"),
        ("conv 1x2x3x3 4 3x3x3", "KERNEL must be a number"),
        ("conv 1x2x3x3 4 9x9", "a window of 9x9 pixels"),
        ("conv 1x3x9x9 4 3x3 --groups 2", "2 groups do not divide the 3 channels"),
        ("relu 9 --precision bf17", "unknown precision 'bf17'"),
        ("relu 9 --precision bf16 --device cpu", "the device cpu has ieee alone"),
        ("cast 9 --device sim", "cast has the precision bf16, fp16, got 'ieee'"),
        ("softmax 4x9 --precision bf16 --device sim", "softmax has the precision ieee, got 'bf16'"),
        ("relu 0x3", "SHAPE must be at least 1, got '0x3'"),
        ("relu 3x3 --pass sideways", "unknown pass 'sideways'"),
        ("relu 3x3 --pass backward-data", "relu has no pass 'backward-data'"),
        ("rely 3x3", "unknown operation 'rely'; did you mean 'relu'?"),
        ("relu 3x3 --stride q", "stride must be numbers joined by x"),
        ("lenet 3x3", "lenet has shapes of its own"),
        ("lenet --only conv9", "lenet has no operation with 'conv9' in it"),
        ("relu 3x3 --seconds 0", "expected a number of at least 0.001"),
        ("relu 3x3 --device reference", "device reference is not made to be fast"),
        ("relu 3x3 --device sim --json x", "device sim has no times, so there is nothing for"),
        ("relu 3x3 --device cpu --json /nowhere/x", "there is no folder /nowhere"),
        ("max_pool 1x1x9x9 2x2 --padding 3", "padding 3 is more than half"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_2(words, text, capsys):
    assert main(["bench", *words.split()]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert text in said.err
    assert said.out == ""
