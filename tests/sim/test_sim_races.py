"""Races that checked mode finds, each in a broken kernel whose correct twin passes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpuconv.cuda import layout, source

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
HEAD = 'extern "C" __global__ void k(float* y, float* x, int* z, unsigned char* c) {\n'

# name: (grid, block, body with {}, what is missing in the broken one, what stands there instead)
BROKEN = {
    "no __syncthreads between a write and a read": (
        *(1, 64),
        """__shared__ float s[64]; const int t = threadIdx.x;
        s[t] = 0; __syncthreads();
        s[t] = x[t]; {} y[t] = s[63 - t];""",
        *("__syncthreads();", ""),
    ),
    "no __syncthreads between a read and the next round's write": (
        *(1, 64),
        """__shared__ float s[64]; const int t = threadIdx.x; float sum = 0;
        for (int i = 0; i < 3; ++i) {{ s[t] = x[t] + i; __syncthreads(); sum += s[63 - t]; {} }}
        y[t] = sum;""",
        *("__syncthreads();", ""),
    ),
    "__syncwarp where the whole block shares": (
        *(1, 64),
        """__shared__ float s[64]; const int t = threadIdx.x;
        s[t] = 0; __syncthreads(); s[t] = x[t]; {} y[t] = s[63 - t];""",
        *("__syncthreads();", "__syncwarp();"),
    ),
    "no __syncwarp": (
        *(1, 32),
        """__shared__ float s[32]; const int t = threadIdx.x;
        s[t] = 0; __syncwarp(); s[t] = x[t]; {} y[t] = s[t ^ 1];""",
        *("__syncwarp();", ""),
    ),
    "a shuffle in the place of __syncwarp": (
        *(1, 32),
        """__shared__ float s[32]; const int t = threadIdx.x;
        s[t] = 0; __syncwarp(); s[t] = x[t]; {} y[t] = s[t ^ 1] + __shfl_sync(~0u, t, 0);""",
        *("__syncwarp();", "__shfl_sync(~0u, t, 1);"),
    ),
    "half of the warp synchronised, both halves read": (
        *(1, 32),
        """__shared__ float s[32]; const int t = threadIdx.x;
        s[t] = 0; __syncwarp(); s[t] = x[t]; __syncwarp({}); y[t] = s[31 - t];""",
        *("~0u", "t < 16 ? 0xffff : 0xffff0000"),
    ),
    "all threads write one shared word": (
        *(1, 32),
        """__shared__ float s; {} s = x[threadIdx.x]; __syncthreads(); y[threadIdx.x] = s;""",
        *("if (threadIdx.x == 5)", ""),
    ),
    "a named barrier of other warps": (
        *(1, 96),
        """__shared__ float s[32]; const int t = threadIdx.x;
        if (t < 32) s[t] = 0;
        __syncthreads();
        if (t < 32) {{ s[t] = x[t]; asm volatile("bar.arrive 1, 64;" ::: "memory"); }}
        else if (t < 64) {{ asm volatile("bar.sync {}, 64;" ::: "memory"); y[t] = s[t - 32]; }}
        else {{ asm volatile("bar.arrive 2, 64;" ::: "memory"); }}""",
        *("1", "2"),
    ),
    "a lost update of a shared counter": (
        *(1, 64),
        """__shared__ int n; if (threadIdx.x == 0) n = 0; __syncthreads();
        {}; __syncthreads(); if (threadIdx.x == 0) z[0] = n;""",
        *("atomicAdd(&n, 1)", "n += 1"),
    ),
    "a counter read while others add to it": (
        *(1, 64),
        """__shared__ int n; if (threadIdx.x == 0) n = 0; __syncthreads();
        atomicAdd(&n, 1); {} if (threadIdx.x == 7) z[0] = *(const int*)&n;""",
        *("__syncthreads();", ""),
    ),
    "a lost update across blocks": (
        *(4, 32),
        "{};",
        *("atomicAdd(&z[threadIdx.x % 4], 1)", "z[threadIdx.x + blockIdx.x] += 1"),
    ),
    "two blocks write one word": (
        *(3, 32),
        "y[{} + threadIdx.x] = blockIdx.x;",
        *("blockIdx.x * 32", "blockIdx.x * 31"),
    ),
    "in place, reading what a neighbouring block writes": (
        *(4, 32),
        """const int i = blockIdx.x * 32 + threadIdx.x;
        const float left = x[i ? i - 1 : 0], here = x[i];
        {}[i] = left + here;""",
        *("y", "x"),
    ),
    "one block's result read by the last block with no counter between": (
        *(4, 32),
        """__shared__ int last; const int t = threadIdx.x;
        if (t == 0) {{ y[blockIdx.x] = x[blockIdx.x]; __threadfence();
                       last = {} == 3; }}
        __syncthreads();
        if (last && t < 4) x[100 + t] = y[t];""",
        *("atomicAdd(&z[0], 1)", "blockIdx.x"),
    ),
    "bytes of one word belong to several threads, and so does one byte": (
        *(2, 64),
        "c[{}] = threadIdx.x;",
        *("blockIdx.x * 64 + threadIdx.x", "blockIdx.x * 64 + threadIdx.x / 2"),
    ),
    "a vector overlaps the next thread's": (
        *(1, 16),
        """float4* to = (float4*)y; to[{}] = make_float4(threadIdx.x, 2, 3, 4);""",
        *("threadIdx.x", "threadIdx.x / 2"),
    ),
}


def run(body, grid, block, order="forward", seed=0):
    module = sim.Module(HEAD + body + "\n}", name="race.cu", check=True)
    x = sim.asarray(np.arange(256, dtype=np.float32))
    arrays = sim.zeros(256), x, sim.zeros(64, np.int32), sim.zeros(256, np.uint8)
    module.launch("k", grid, block, arrays, order=order, seed=seed)


def text(name, broken):
    grid, block, body, right, wrong = BROKEN[name]
    return body.format(wrong if broken else right), grid, block


@pytest.mark.parametrize("name", BROKEN)
def test_a_race_is_found_in_every_order(name):
    for order, seed in ORDERS:
        with pytest.raises(sim.KernelError, match="race on") as caught:
            run(*text(name, True), order, seed)
        assert caught.value.kind in ("race_shared", "race_global")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_the_correct_twin_passes_in_every_order(name):
    for order, seed in ORDERS:
        run(*text(name, False), order, seed)


def test_a_race_names_both_threads_and_both_lines():
    body = """__shared__ float s[64];
s[threadIdx.x] = 0; __syncthreads();
if (threadIdx.x == 40) s[3] = x[0];
if (threadIdx.x == 50) y[0] = s[3];"""
    words = (
        r"k: race on 4 bytes at byte 12 of s: thread \(40, 0, 0\) of block \(0, 0, 0\) wrote them "
        r"at race.cu:4, and no barrier, fence or atomic orders that before this read, thread "
        r"\(50, 0, 0\) of block \(0, 0, 0\) at race.cu:5$"
    )
    with pytest.raises(sim.KernelError, match=words):
        run(body, 1, 64)


def test_launches_are_in_order():
    """A launch may read what an earlier one wrote, in any block, even if a kernel failed."""
    source = (
        'extern "C" __global__ void k(float* y, int n) { y[blockIdx.x] += 1; if (n) __trap(); }'
    )
    module, y = sim.Module(source, check=True), sim.zeros(8)
    for order in ("forward", "reverse"):
        module.launch("k", 8, 1, (y, 0), order=order)
        with pytest.raises(sim.KernelError, match="trap"):
            module.launch("k", 8, 1, (y, 1))
    assert sim.asnumpy(y)[0] >= 2


def test_narrower_accesses_come_later():
    """Records of words are replaced by records of bytes when a kernel accesses bytes."""
    y = sim.zeros(64, np.uint8)
    words = 'extern "C" __global__ void k(int* y) { y[threadIdx.x] = 1; }'
    bytes_ = 'extern "C" __global__ void k(unsigned char* y) { y[threadIdx.x] += 1; }'
    for code, threads in ((words, 16), (bytes_, 64), (words, 16)):
        sim.Module(code, check=True).launch("k", 1, threads, (y,))


def test_variables_of_a_module_can_race():
    racing = '__device__ int n; extern "C" __global__ void k() { n += 1; }'
    with pytest.raises(sim.KernelError, match="race on 4 bytes at byte 0 of n: "):
        sim.Module(racing, check=True).launch("k", 2, 1, ())
    atomic = '__device__ int n; extern "C" __global__ void k() { atomicAdd(&n, 1); }'
    sim.Module(atomic, check=True).launch("k", 2, 32, ())


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_a_barrier_that_only_a_small_grid_needs(order):
    """The last barrier of layout.cu: a block's second tile must not overwrite its first.

    The launch configuration gives each block one tile, but a kernel must be right for any grid.
    """
    text = source.text("layout.cu")
    last = "__syncthreads();\n    }\n}"
    assert text.count(last) == 1
    (launch,) = layout.config_transpose(2, 64, 68).launches
    x = np.random.default_rng(0).standard_normal((2, 64, 68)).astype(np.float32)
    for code, racing in ((text, False), (text.replace(last, "}\n}"), True)):
        module = sim.Module(code, launch.options, name="layout.cu", check=True)
        y, given = sim.empty(x.size), sim.asarray(x)
        numbers = [launch.scalars[name] for name in
                   ("tiles", "tiles_down", "tiles_across", "rows", "columns")]  # fmt: skip
        how = ("transpose", 1, launch.block, (y, given, *numbers))
        if racing:
            with pytest.raises(sim.KernelError, match="race on"):
                module.launch(*how, order=order)
        else:
            module.launch(*how, order=order)
            found = sim.asnumpy(y).reshape(2, 68, 64)
            np.testing.assert_array_equal(found, x.transpose(0, 2, 1))


def test_checked_launches_of_several_python_threads():
    """They run one by one, because race detection has one clock."""
    code = (
        'extern "C" __global__ void k(float* y) { __shared__ float s[64]; s[threadIdx.x] = 1;'
        " __syncthreads(); y[threadIdx.x] += s[63 - threadIdx.x]; }"
    )
    module, y = sim.Module(code, check=True), sim.zeros(64)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(module.launch, "k", 1, 64, (y,)) for _ in range(40)]:
            done.result()
    assert (sim.asnumpy(y) == 40).all()


MANY = """
__shared__ float s[64]; const int t = threadIdx.x, i = blockIdx.x * 64 + t;
s[t] = x[t];
y[(i + t) % 200] = i;
if (t % 3 == 0) atomicAdd(&z[t], 1);
if (blockIdx.x == 37) x[t] = s[63 - t];
z[t] = blockIdx.x;"""


def test_the_findings_do_not_depend_on_the_number_of_cores():
    """Races within blocks, between blocks of one part, and between parts."""
    module = sim.Module(HEAD + MANY + "\n}", name="race.cu", check=True)
    for order, seed in ORDERS:
        told = []
        for cores in (1, 2):
            x = sim.asarray(np.arange(256, dtype=np.float32))
            arrays = sim.zeros(256), x, sim.zeros(64, np.int32), sim.zeros(256, np.uint8)
            with pytest.raises(sim.KernelError) as caught:
                module.launch("k", 80, 64, arrays, order=order, seed=seed, cores=cores)
            told.append([
                (f.kind, f.line, f.block, f.thread, f.argument, f.index, f.other)
                for f in caught.value.findings
            ])  # fmt: skip
        assert told[0] == told[1]
        assert {(kind, line) for kind, line, *_ in told[0]} >= {
            ("race_shared", 7), ("race_global", 5), ("race_global", 7), ("race_global", 8),
        }  # fmt: skip


def test_a_race_between_the_parts_of_a_launch_alone():
    """Only the first and the last block access one word."""
    body = "if ({}) y[5] = blockIdx.x;"
    ends, inner = "blockIdx.x % 99 == 0 && threadIdx.x == 7", "blockIdx.x == 3 && threadIdx.x == 7"
    for order, seed in ORDERS:
        run(body.format(inner), 100, 64, order, seed)
        with pytest.raises(sim.KernelError, match="race on 4 bytes at ") as caught:
            run(body.format(ends), 100, 64, order, seed)
        (one,) = caught.value.findings
        assert (one.argument, one.index) == (0, 5)
        assert {one.block, one.other.block} == {(0, 0, 0), (99, 0, 0)}
        assert one.thread == one.other.thread == (7, 0, 0)


def test_a_launch_goes_on_after_its_first_finding():
    body = """y[threadIdx.x + 250] = 1;
y[threadIdx.x] = x[300];
z[threadIdx.x] = 7 / (int)threadIdx.x;"""
    with pytest.raises(sim.KernelError) as caught:
        run(body, 1, 32)
    found = [(f.kind, f.line, f.argument, f.index) for f in caught.value.findings]
    assert found == [
        ("division", 4, None, None), ("bounds_global", 2, 0, 256), ("bounds_global", 3, 1, 300),
    ]  # fmt: skip
    assert str(caught.value) == caught.value.findings[0].message


def test_warnings_alone_are_returned():
    module = sim.Module(HEAD + "z[3] = 1;\n}", name="race.cu", check=True)
    arrays = sim.zeros(4), sim.zeros(4), sim.zeros(8, np.int32), sim.zeros(4, np.uint8)
    (one,) = module.launch("k", 1, 32, arrays)
    assert (one.kind, one.severity, one.line) == ("same_value", "warning", 2)
    assert (one.argument, one.index) == (2, 3)


def test_work_taken_by_an_atomic_is_spread():
    """Every thread of every block gets some of it, in checked mode."""
    body = """for (;;) {
        const int i = atomicAdd(z, 1);
        if (i >= 200) break;
        c[i] = blockIdx.x;
        y[i] = threadIdx.x;
    }"""
    module = sim.Module(HEAD + body + "\n}", check=True)
    y, c = sim.zeros(256), sim.zeros(256, np.uint8)
    module.launch("k", 2, 32, (y, sim.zeros(1), sim.zeros(1, np.int32), c))
    taken = list(zip(sim.asnumpy(c)[:200].tolist(), sim.asnumpy(y)[:200].tolist(), strict=True))
    assert len(set(taken)) == 64


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_many_blocks_wait_for_each_other(check, order):
    """A barrier of the whole grid, twice: every block needs all the others."""
    body = """
    for (int round = 1; round <= 2; ++round) {
        if (threadIdx.x == 0) {
            y[round * 64 + blockIdx.x] = blockIdx.x;
            __threadfence();
            atomicAdd(z, 1);
            while (*(volatile int*)z < round * (int)gridDim.x);
            __threadfence();
        }
        __syncthreads();
        if (threadIdx.x == 0)
            y[192 + blockIdx.x] += y[round * 64 + (blockIdx.x + 1) % gridDim.x];
    }"""
    module = sim.Module(HEAD + body + "\n}", check=check)
    y = sim.zeros(256)
    args = y, sim.zeros(1), sim.zeros(1, np.int32), sim.zeros(1, np.uint8)
    module.launch("k", 40, 32, args, order=order)
    want = [2 * ((n + 1) % 40) for n in range(40)]
    assert sim.asnumpy(y)[192:232].tolist() == want
