"""As test_mutations.py, of the kernels on tensor cores: each broken in one way, which the sweep of
test_kernels_mma.py must notice, by values or by its search for races.
"""

from functools import cache

import pytest
from kernel_runs import sim
from test_kernels_mma import Case, Run, SimRuntime

from gpuconv.cuda import source, split_k
from gpuconv.ops import conv2d_launch_mma as config

BORDERS = Case(1, 32, 5, 6, 8, 3, 3, 1, 1)  # five stages of a filter
PARTS = Case(2, 8, 12, 11, 12, 2, 2)  # several parts of pixels, groups of them

# name: (file, the text as it is, what takes its place, precision, case, with checks)
MUTATIONS = {
    "no wait for copies": (
        "conv_mma.cu",
        "read = next_stage(read);\n        wait_for_copies<STAGES - 2>();",
        "read = next_stage(read);",
        *("bf16", BORDERS, True),
    ),
    "no barrier between stages": (
        "conv_mma.cu",
        "__syncthreads();\n        loader.read(f[0], read, 0);",
        "loader.read(f[0], read, 0);",
        *("bf16", BORDERS, True),
    ),
    "copies into the stage that is read": (
        "conv_mma.cu",
        "loader.fetch(STAGES == 2 ? next_stage(read) : filled);",
        "loader.fetch(read);",
        *("bf16", BORDERS, False),
    ),
    "copies to places that are not turned": (
        "conv_mma.cu",
        "to = shared + place(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);",
        "to = shared + threadIdx.x / CHUNKS * ROW_BYTES + threadIdx.x % CHUNKS * 16;",
        *("bf16", BORDERS, False),
    ),
    "reads from places that are not turned, backward weight": (
        "conv_mma_weight.cu",
        "vector_place(member, b + group, PIXEL_B)",
        "member * PIXEL_B + (b + group) * 16",
        *("tf32", PARTS, False),
    ),
    "rows of an operand exchanged": (
        "conv_mma.cu",
        "load_matrices(f.a[i], a + i * 16 * ROW_BYTES);",
        "load_matrices(f.a[i], a + (i ^ 1) * 16 * ROW_BYTES);",
        *("bf16", BORDERS, False),
    ),
    "a border one too wide": (
        "conv_mma.cu",
        "(unsigned)row < (unsigned)size",
        "(unsigned)row <= (unsigned)size",
        *("bf16", BORDERS, False),
    ),
    "a border one too wide, backward weight": (
        "conv_mma_weight.cu",
        "(unsigned)(left + w) < (unsigned)W",
        "(unsigned)(left + w) <= (unsigned)W",
        *("bf16", BORDERS, False),
    ),
    "no zeros outside the image": (
        "conv_mma.cu",
        '"r"(inside ? 16 : 0)',
        '"r"(16)',
        *("bf16", BORDERS, True),
    ),
    "filters past the last are read": (
        "conv_mma_weight.cu",
        "WHOLE ? there : i * LANES < count && (PAIRED || there)",
        "there",
        *("bf16", BORDERS, True),
    ),
    "the last group of parts left out": (
        "conv_mma_weight.cu",
        "sum_rows(partials + i, groups, ",
        "sum_rows(partials + i, groups - 1, ",
        *("bf16", PARTS, False),
    ),
    "parts overlap by a pixel": (
        "conv_mma_weight.cu",
        "(long long)begin + split_length,",
        "(long long)begin + split_length + 1,",
        *("tf32", PARTS, False),
    ),
    "a bias gradient counted twice": (
        "conv_mma_weight.cu",
        "db[filter] = four.v[v];",
        "db[filter] = 2.0f * four.v[v];",
        *("tf32", PARTS, False),
    ),
    "ones of the bias gradient for one pixel of a pair": (
        "conv_mma_weight.cu",
        "if (BIAS && PAIRED) store_shared_if",
        "if (false) store_shared_if",
        *("tf32", PARTS, False),
    ),
    "the other pixel's taps": (
        "conv_mma_weight.cu",
        "__shfl_sync(~0u, taps, t, 2)",
        "__shfl_sync(~0u, taps, 1 - t, 2)",
        *("tf32", BORDERS, True),
    ),
    "the other pixel's place": (
        "conv_mma_weight.cu",
        "__shfl_sync(~0u, at, t, 2)",
        "__shfl_sync(~0u, at, 1 - t, 2)",
        *("tf32", BORDERS, True),
    ),
    "a border one too wide, by bits": (
        "conv_mma_weight.cu",
        "max(step - 1 - first + size, 0)",
        "max(step - first + size, 0)",
        *("tf32", BORDERS, False),
    ),
    "a border one too narrow, by bits": (
        "conv_mma_weight.cu",
        "max(step - 1 - first, 0)",
        "max(step - first, 0)",
        *("tf32", BORDERS, False),
    ),
    "TF32 filters not rounded": (
        "weight_transform.cu",
        "to_operand(c < channels ? w[tap * channels + c] : 0.0f)",
        "c < channels ? w[tap * channels + c] : 0.0f",
        *("tf32", BORDERS, False),
    ),
    "TF32 gradients not rounded": (
        "conv_mma_weight.cu",
        "__float_as_uint(value * (1.0f + 1.0f / 3072))",
        "__float_as_uint(value)",
        *("tf32", PARTS, False),
    ),
}
USUAL = {"TF32 filters not rounded"}  # in the default run


@cache
def module(text, file, options, check):
    return sim.Module(text, options, name=file, check=check)


class Broken(SimRuntime):
    """One file's kernels are others."""

    def __init__(self, file=None, old="", new="", check=False):
        super().__init__(check=check)
        self.file, self.old, self.new = file, old, new

    def build(self, text, launch):
        if launch.file == self.file:
            text = text.replace(self.old, self.new)
        return module(text, launch.file, launch.options, self.check)


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    monkeypatch.setattr(split_k, "MIN_SPLIT", 16)
    whole = config.config_backward_weight.__wrapped__
    monkeypatch.setattr(config, "config_backward_weight", whole)  # none is cached


def compare(precision, case, on, weight):
    """Backward weight alone, or the forward pass alone."""
    wanted = ("dw",) if weight else ("y",)
    missing = ("y", "dx") if weight else ("dx", "dw", "db")
    run = Run(precision, case)
    run.compare(run.kernels(on=on, wanted=wanted), missing)


def chosen(names):
    return [pytest.param(n, marks=() if n in USUAL else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", chosen(MUTATIONS))
def test_a_broken_kernel_is_noticed(name):
    *change, precision, case, check = MUTATIONS[name]
    on = Broken(*change, check=check)
    with pytest.raises((AssertionError, sim.KernelError)):
        compare(precision, case, on, change[0] == "conv_mma_weight.cu")


@pytest.mark.slow
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("precision", "case", "weight"),
    [("bf16", BORDERS, False), ("bf16", BORDERS, True), ("tf32", BORDERS, False),
     ("bf16", PARTS, True), ("tf32", PARTS, True), ("tf32", BORDERS, True)],
)  # fmt: skip
def test_the_unbroken_twin_passes(precision, case, weight, check):
    compare(precision, case, Broken(check=check), weight)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_of_the_text_as_it_is(name):
    file, old, new, *_ = MUTATIONS[name]
    assert source.text(file).count(old) == 1
    assert old != new
