"""What the kernels do, counted by the simulator, is no more than kernels.lock records.

    python tests/kernels/test_kernels_lock.py                   records all anew, for this NVRTC
    python tests/kernels/test_kernels_lock.py conv_simt.cu      counts, and registers of these files

Of each kernel in a small launch: instructions of warps, sectors of device memory, bank conflicts,
barriers, floating-point operations. The compiler's code differs between releases, so each release
of NVRTC has a record of its own. test_kernels_build.py compares the registers.
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "kernels")]

import kernel_runs  # noqa: E402
import lock_file  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import test_kernels_orders as orders  # noqa: E402
from kernel_runs import F4, sim, source  # noqa: E402
from simulated import DEVICE  # noqa: E402

from gpuconv.ops import conv2d_launch, conv2d_launch_mma  # noqa: E402
from gpuconv.ops.conv2d_launch import Conv2dShape  # noqa: E402
from gpuconv.shapes import window  # noqa: E402

COUNTED = ("instructions", "sectors", "shared_conflicts", "barriers", "flop")
QUICK = ("softmax", "transpose")  # in the default run


def cases():
    """One of each kernel, and a convolution of 64 filters of 3x3 over 16 channels."""
    conv = Conv2dShape.of((2, 16, 9, 9), (64, 16, 3, 3), window(3, 1, 1), 1)
    image, pixels, w = ((2, 9, 9, 16), F4), ((2, 9, 9, 64), F4), ((64, 3, 3, 16), F4)
    rng = np.random.default_rng(71)
    x, y, filters = (rng.standard_normal(shape).astype(F4) for shape, _ in (image, pixels, w))
    return {
        **orders.CASES,
        "conv2d": (
            conv2d_launch.config_forward(conv, False, False),
            {"x": x, "w": filters, "b": filters.ravel()},
            {"y": pixels},
        ),
        "conv2d_backward_data": (
            conv2d_launch.config_backward_data(conv, False, False),
            {"dy": y, "w": filters, "x": x},
            {"dx": image},
        ),
        "conv2d_backward_weight": (
            conv2d_launch.config_backward_weight(conv),
            {"dy": y, "x": x},
            {"dw": w},
        ),
        **on_tensor_cores(conv, x, y, filters, "bf16"),
        **on_tensor_cores(conv, x, y, filters, "tf32"),
        **{f"{name} bf16": in_16_bits(*orders.CASES[name]) for name in ("relu", "max_pool2d")},
    }


def on_tensor_cores(conv, x, y, w, precision):
    """The same convolution, and what brings its operands into shape. Of numbers of 16 bits any will
    do: they are counted, not compared.
    """
    form = conv2d_launch_mma.FORMATS[precision]
    image, pixels = ((2, 9, 9, 16), form.dtype), ((2, 9, 9, 64), form.dtype)
    b, x, y = w.ravel()[:64], x.astype(form.dtype), y.astype(form.dtype)

    def filters(backward):
        shape = (conv2d_launch_mma.filters_size(conv, form, backward),)
        config = conv2d_launch_mma.config_filters(conv, form, backward)
        return np.zeros(shape, form.dtype), (config, {"w": w}, {"filters": (shape, form.dtype)})

    (ahead, forward), (back, backward) = filters(False), filters(True)
    pad = conv2d_launch_mma.config_pad((2, 6, 9, 9), (486, 1, 54, 6), 972, 1, form, "float")
    weight = conv2d_launch_mma.config_backward_weight(conv, form, (16, 64), True)
    found = {
        "conv2d": (
            conv2d_launch_mma.config_forward(conv, form, True, True),
            {"x": x, "filters": ahead, "b": b},
            {"y": pixels},
        ),
        "conv2d_backward_data": (
            conv2d_launch_mma.config_backward_data(conv, form, False),
            {"dy": y, "filters": back, "x": x, "b": b},
            {"dx": image},
        ),
        "conv2d_backward_weight": (
            weight,
            {"dy": y, "x": x},
            {"dw": (w.shape, F4), "db": ((64,), F4)},
        ),
        "filters": forward,
        "filters_backward": backward,
        "pad_channels": (
            pad,
            {"from": w.ravel()[:972]},
            {"to": ((2, 9, 9, form.whole(6)), form.dtype)},
        ),
    }
    return {f"{name} {precision}": case for name, case in found.items()}


def in_16_bits(config, inputs, outputs, numbers=None):
    """A case whose arrays of floats are bfloat16, and the build for it."""
    store = ("STORE", "brain16")
    launches = (replace(one, defines=(*one.defines, store)) for one in config.launches)
    inputs = {n: a.astype(np.uint16) if a.dtype == F4 else a for n, a in inputs.items()}
    outputs = {n: (shape, np.uint16 if d == F4 else d) for n, (shape, d) in outputs.items()}
    return replace(config, launches=tuple(launches)), inputs, outputs, numbers


CASES = cases()


def totals(config, inputs, outputs, numbers=None):
    """{kernel: what the simulator counts of it, by name} of a configuration's launches."""
    made = []

    @cache
    def module(file, options, check):
        made.append(sim.Module(source.text(file), options, name=file, count=True))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_runs, "module", module)
        kernel_runs.run(config, inputs, outputs, numbers)
    counters = [one.counters(kernel) for one in made for kernel in one.kernels]
    return {one.kernel: one.total() for one in counters if one.launches}


def sectors(total):
    """Sectors of device memory among such counts."""
    return sum(total[f"{kind}_sectors"] for kind in ("load", "store", "atomic"))


def counts(name):
    """{kernel: its counts, in the order of COUNTED} of a case."""
    found = totals(*CASES[name])
    return {
        kernel: [sectors(total) if what == "sectors" else total[what] for what in COUNTED]
        for kernel, total in found.items()
    }


@pytest.mark.skipif(DEVICE == "cuda", reason="the simulator counts, not a GPU")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_no_kernel_does_more_than_recorded(name):
    recorded = lock_file.of_release()["counts"]
    if not recorded:
        pytest.skip(f"kernels.lock has nothing of NVRTC {sim.compile.compiler_version()}")
    found = counts(name)
    assert set(found) == set(recorded[name])
    for kernel, values in found.items():
        more = [
            f"{what}: {value}, recorded {limit}"
            for what, value, limit in zip(COUNTED, values, recorded[name][kernel], strict=True)
            if value > limit
        ]
        hint = "if that is meant: python tests/kernels/test_kernels_lock.py"
        assert not more, f"{kernel}: {'; '.join(more)}; {hint}"


def test_all_cases_are_recorded():
    for release, held in lock_file.record().items():
        assert set(held["counts"]) == set(CASES), release


def write(files):
    """Record the counts of every case, and the registers of these files' kernels."""
    import test_kernels_build as build
    import test_kernels_registers as machine_code

    recorded = list(machine_code.recorded())
    found = (
        (lock_file.name(file, defines), arch, lock_file.taken(arch, usage, threads))
        for file, defines, arch, usage in machine_code.usages(s for s in recorded if s[0] in files)
        for threads in [build.threads_of(file, defines)]
    )
    names = [lock_file.name(*special) for special in recorded]
    lock_file.write({name: counts(name) for name in CASES}, found, names)


if __name__ == "__main__":
    write(sys.argv[1:] or source.files())
