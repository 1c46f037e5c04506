"""Counters against values worked out by hand, and against loops over the addresses."""

from __future__ import annotations

import math

import numpy as np
import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

WARP, SECTOR, BANKS, FLOAT = 32, 32, 32, 4
LINE = WARP * FLOAT // SECTOR  # sectors of 32 floats side by side


def sectors(*first_bytes: int, size: int = FLOAT) -> int:
    """How many 32-byte sectors accesses of `size` bytes touch, one by one."""
    return len({(at + n) // SECTOR for at in first_bytes for n in range(size)})


# name: (what one warp executes, counts)
LANES = range(WARP)
GLOBAL = {
    "side by side": ("y[i] = x[i];", {"load_requests": 1, "load_sectors": LINE}),
    "bytes asked for": ("y[i] = x[i];", {"load_bytes": WARP * FLOAT, "store_bytes": WARP * FLOAT}),
    "every second": ("y[i] = x[2 * i];", {"load_sectors": 2 * LINE}),
    "every third": ("y[i] = x[3 * i];", {"load_sectors": 3 * LINE}),
    "a sector each": ("y[i] = x[8 * i];", {"load_sectors": WARP}),
    "far apart": ("y[i] = x[32 * i];", {"load_sectors": WARP, "load_bytes": WARP * FLOAT}),
    "one for all": ("y[i] = x[7];", {"load_requests": 1, "load_sectors": 1}),
    "off by one": ("y[i] = x[i + 1];", {"load_sectors": LINE + 1}),
    "off by a sector": ("y[i] = x[i + 8];", {"load_sectors": LINE}),
    "backwards": ("y[i] = x[31 - i];", {"load_sectors": LINE}),
    "half of the lanes": ("if (i < 16) y[i] = x[i];", {"load_requests": 1, "load_sectors": 2}),
    "every second lane": ("if (i % 2) y[i] = x[i];", {"load_sectors": LINE, "load_bytes": 64}),
    "pairs": (
        "((float2*)y)[i] = ((const float2*)x)[i];",
        {"load_requests": 1, "load_sectors": 2 * LINE, "store_sectors": 2 * LINE},
    ),
    "fours": (
        "((float4*)y)[i] = ((const float4*)x)[i];",
        {"load_requests": 1, "load_sectors": 4 * LINE, "store_bytes": 4 * WARP * FLOAT},
    ),
    "bytes": ("((char*)y)[i] = ((const char*)x)[i];", {"load_sectors": 1, "store_sectors": 1}),
    "doubles": ("((double*)y)[i] = ((const double*)x)[i];", {"load_sectors": 2 * LINE}),
    "rows of 16": ("y[i] = x[i / 16 * 100 + i % 16];", {"load_sectors": sectors(
        *(FLOAT * (i // 16 * 100 + i % 16) for i in LANES))}),
    "scattered": ("y[i] = x[i * 37 % 101];", {"load_sectors": sectors(
        *(FLOAT * (i * 37 % 101) for i in LANES))}),
    "two loads": ("y[i] = x[i] + x[i + 32];", {"load_requests": 2, "load_sectors": 2 * LINE}),
    "store in columns": ("y[33 * i] = x[i];", {"store_requests": 1, "store_sectors": WARP}),
    "a loop": (
        "float s = 0;\nfor (int j = 0; j < n; ++j) s += x[32 * j + i];\ny[i] = s;",
        {"load_requests": 11, "load_sectors": 11 * LINE, "store_requests": 1},
    ),
    "loops of other lengths": (
        # lane i goes round i times; in round j the lanes above j take part
        "float s = 0;\n#pragma unroll 1\n"
        "for (int j = 0; j < i; ++j) s += x[32 * j + i];\ny[i] = s;",
        {"load_requests": 31, "load_sectors": sum(
            sectors(*(FLOAT * (32 * j + i) for i in range(j + 1, WARP))) for j in range(31))},
    ),
    "loops in loops": (
        # in round j of the outer loop lane i goes round (i + j) % 4 times
        "float s = 0;\n#pragma unroll 1\nfor (int j = 0; j < 3; ++j)\n#pragma unroll 1\n"
        "for (int k = 0; k < (i + j) % 4; ++k) s += x[32 * k + i];\ny[i] = s;",
        {"load_requests": 3 * 3, "load_bytes": FLOAT * sum(
            (i + j) % 4 for i in LANES for j in range(3))},
    ),
    "one counter": (
        "atomicAdd((unsigned*)y, 1u);",
        {"atomic_requests": 1, "atomic_sectors": 1, "atomic_collisions": WARP - 1},
    ),
    "four counters": (
        "atomicAdd((unsigned*)y + i % 4, (unsigned)n);",
        {"atomic_requests": 1, "atomic_bytes": WARP * 4, "atomic_collisions": WARP // 4 - 1},
    ),
    "both ways": ("if (i < 8) y[i] = x[i]; else y[i] = 2 * x[i + 64];", {"load_requests": 2}),
}  # fmt: skip
SHARED = {
    "shared side by side": ("y[i] = t[i];", 1, 0),
    "shared every second": ("y[i] = t[2 * i];", 2, 1),
    "shared every third": ("y[i] = t[3 * i];", 1, 0),  # 3 and 32 have no common divisor
    "shared every fourth": ("y[i] = t[4 * i];", 4, 3),
    "shared every sixth": ("y[i] = t[6 * i];", math.gcd(6, BANKS), math.gcd(6, BANKS) - 1),
    "shared column": ("y[i] = t[32 * i];", WARP, WARP - 1),
    "shared padded column": ("y[i] = t[33 * i];", 1, 0),
    "shared one for all": ("y[i] = t[5];", 1, 0),
    "shared two words of one bank": ("y[i] = t[i % 2 * 32];", 2, 1),
    "shared bytes": ("y[i] = ((char*)t)[i];", 1, 0),  # 8 words, four lanes each
    "shared pairs": ("((float2*)y)[i] = ((float2*)t)[i];", 2, 0),  # 16 lanes at a time
    "shared every second pair": ("((float2*)y)[i] = ((float2*)t)[2 * i];", 4, 2),
    "shared fours": ("((float4*)y)[i] = ((float4*)t)[i];", 4, 0),  # 8 lanes at a time
    "shared every second four": ("((float4*)y)[i] = ((float4*)t)[2 * i];", 8, 4),
}


def source():
    head = "(float* y, const float* x, int n) {\nint i = threadIdx.x;\n"
    plain = [
        f'extern "C" __global__ void g{n}{head}{body}\n}}'
        for n, (body, _) in enumerate(GLOBAL.values())
    ]
    fill = "__shared__ float t[1056];\nfor (int j = i; j < 1056; j += 32) t[j] = x[j];\n"
    shared = [
        f'extern "C" __global__ void s{n}{head}{fill}__syncthreads();\n{body}\n}}'
        for n, (body, *_) in enumerate(SHARED.values())
    ]
    return "\n".join((*plain, *shared))


@pytest.fixture(scope="module")
def patterns():
    module = sim.Module(source(), count=True)
    x, y = sim.asarray(np.ones(4096, np.float32)), sim.zeros(4096)
    for name in module.kernels:
        module.launch(name, 1, WARP, (y, x, 11))
    return module


@pytest.mark.parametrize("number", range(len(GLOBAL)), ids=list(GLOBAL))
def test_global_patterns(patterns, number):
    counts = patterns.counters(f"g{number}").total()
    expected = list(GLOBAL.values())[number][1]
    assert {name: counts[name] for name in expected} == expected


@pytest.mark.parametrize("number", range(len(SHARED)), ids=list(SHARED))
def test_shared_patterns(patterns, number):
    _, wavefronts, conflicts = list(SHARED.values())[number]
    counters = patterns.counters(f"s{number}")
    *_, line = (c for c in counters.by_line().values() if c["shared_requests"])
    assert line["shared_requests"] == 1
    assert (line["shared_wavefronts"], line["shared_conflicts"]) == (wavefronts, conflicts)
    filling = counters.total()
    assert filling["shared_requests"] == 1056 // WARP + 1
    assert filling["shared_conflicts"] == conflicts
    assert filling["barriers"] == 1


TILED = """
#define T 16
extern "C" __global__ void sgemm(float* c, const float* a, const float* b, int n) {
    __shared__ float p[T][T], q[T][T];
    int row = blockIdx.y * T + threadIdx.y, column = blockIdx.x * T + threadIdx.x;
    float sum = 0;
    for (int k = 0; k < n; k += T) {
        p[threadIdx.y][threadIdx.x] = a[row * n + k + threadIdx.x];
        q[threadIdx.y][threadIdx.x] = b[(k + threadIdx.y) * n + column];
        __syncthreads();
        for (int j = 0; j < T; ++j) sum = fmaf(p[threadIdx.y][j], q[j][threadIdx.x], sum);
        __syncthreads();
    }
    c[row * n + column] = sum;
}
"""


def test_tiled_sgemm():
    """Work, traffic and barriers of a matrix product, and the product itself."""
    n, tile, warps = 48, 16, 16 * 16 // WARP
    blocks, steps = (n // tile) ** 2, n // tile
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, n, n), np.float32)
    c = sim.empty((n, n))
    module = sim.Module(TILED, count=True)
    module.launch("sgemm", (steps, steps), (tile, tile), (c, sim.asarray(a), sim.asarray(b), n))
    bound = 1e-6 * n * np.abs(a) @ np.abs(b)
    assert (np.abs(sim.asnumpy(c) - a.astype(np.float64) @ b) <= bound).all()
    counts = module.counters("sgemm").total()
    assert (counts["fma"], counts["flop"]) == (n**3, 2 * n**3)
    assert counts["barriers"] == 2 * steps * blocks * warps
    assert counts["load_requests"] == 2 * steps * blocks * warps
    # a warp has two rows of 16 floats, of 2 sectors each
    assert counts["load_sectors"] == 4 * counts["load_requests"]
    assert counts["load_bytes"] == 2 * n**3 // tile * FLOAT
    assert (counts["store_requests"], counts["store_bytes"]) == (blocks * warps, n * n * FLOAT)
    # two rows of a tile lie in different banks; p[y][j] is two words, q[j][x] 16, of other banks
    assert counts["shared_conflicts"] == 0
    assert counts["shared_bytes"] >= (2 * n**3 // tile + 2 * n**3 // 4) * FLOAT


def test_launches_add_up_and_lines_too():
    source = 'extern "C" __global__ void k(float* y) {\n  y[threadIdx.x] += 1;\n  y[0] = 2;\n}'
    module = sim.Module(source, name="k.cu", count=True)
    y = sim.zeros(64)
    for _ in range(3):
        module.launch("k", 2, 64, (y,))
    counters = module.counters("k")
    lines = counters.by_line()
    assert counters.launches == 3
    assert lines["k.cu", 2]["load_requests"] == 3 * 2 * 2
    assert lines["k.cu", 3]["store_sectors"] == 3 * 2 * 2
    for name, value in counters.total().items():
        assert value == sum(line[name] for line in lines.values())
    assert sum(counters.classes().values()) == counters.total()["instructions"]


def test_many_blocks_fill_the_log_more_than_once(monkeypatch):
    from gpuconv.sim import counters

    monkeypatch.setattr(counters, "_NOTES", 1000)
    module = sim.Module(
        'extern "C" __global__ void k(float* y, const float* x, int n) {\n'
        "for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)\n"
        "y[i] = x[i]; }",
        count=True,
    )
    n = 100_000
    module.launch("k", 7, 96, (sim.empty(n), sim.zeros(n), n))
    counts = module.counters("k").total()
    assert counts["load_sectors"] == counts["store_sectors"] == n * FLOAT // SECTOR
    assert counts["load_bytes"] == n * FLOAT


def test_what_one_block_may_do_at_most(monkeypatch):
    from gpuconv.sim import counters

    monkeypatch.setattr(counters, "_NOTES", 100)
    monkeypatch.setattr(counters, "_MOST", 500)
    module = sim.Module(
        'extern "C" __global__ void k(float* y) { for (int j = 0; j < 999; ++j) y[j] += j; }',
        count=True,
    )
    with pytest.raises(sim.LaunchError, match="k: one block does more than 500 countable steps"):
        module.launch("k", 1, 1, (sim.zeros(999),))


def test_counting_excludes_checking():
    with pytest.raises(ValueError, match="counts or checks"):
        sim.Module(TILED, check=True, count=True)
    with pytest.raises(ValueError, match="count=True"):
        sim.Module(TILED).counters("sgemm")


def test_what_does_not_count_has_no_trace_of_counting():
    from gpuconv.sim import lower, ptx

    text = sim.to_ptx(TILED)
    plain, _ = lower.lower(ptx.parse(text))
    counting, info = lower.lower(ptx.parse(text), count=True)
    assert "sim_log" in counting
    assert "sim_log" not in plain
    assert ".count" not in plain
    assert info.executed


TENSOR = """
__device__ unsigned place(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
extern "C" __global__ void copies(const float4* x, float* y) {
    __shared__ float4 t[32];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::
                 "r"(place(t + threadIdx.x)), "l"(x + 2 * threadIdx.x));
    asm volatile("cp.async.commit_group; cp.async.wait_group 0;");
    __syncthreads();
    y[threadIdx.x] = t[threadIdx.x].x;
}
extern "C" __global__ void matrices(float* y) {
    __shared__ __align__(16) unsigned t[32 * PITCH];
    for (int i = threadIdx.x; i < 32 * PITCH; i += 32) t[i] = 0;
    __syncthreads();
    unsigned a[4], b[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(place(t + PITCH * threadIdx.x)));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
        : "=r"(b[0]), "=r"(b[1]) : "r"(place(t + PITCH * threadIdx.x)));
    float c[4] = {};
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    y[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}
"""


@pytest.mark.parametrize(("pitch", "passes"), [(4, 1), (32, 8), (36, 1)])
def test_matrices(pitch, passes):
    """ldmatrix reads eight rows of 16 bytes at a time; x4 so many times four, x2 times two.

    Rows 4 words apart lie side by side, rows 32 words apart in the same four banks, rows 36 words
    apart in the next four.
    """
    module = sim.Module(TENSOR, [f"-DPITCH={pitch}"], count=True)
    module.launch("matrices", 1, 32, (sim.empty(32),))
    counters = module.counters("matrices")
    counts = counters.total()
    assert (counts["mma"], counts["flop"] - 3 * WARP) == (1, 2 * 16 * 8 * 16)
    reads = [c for c in counters.by_line().values() if c["shared_requests"] == 1]
    assert [c["shared_wavefronts"] for c in reads] == [4 * passes, 2 * passes]
    assert [c["shared_conflicts"] for c in reads] == [4 * (passes - 1), 2 * (passes - 1)]


def test_asynchronous_copies():
    """32 lanes of 16 bytes, every second from device memory, side by side in shared memory."""
    module = sim.Module(TENSOR, ["-DPITCH=4"], count=True)
    module.launch("copies", 1, 32, (sim.zeros((64, 4)), sim.empty(32)))
    counts = module.counters("copies").total()
    assert counts["load_requests"] == 1
    assert (counts["load_sectors"], counts["load_bytes"]) == (WARP, WARP * 16)
    # 4 wavefronts for the copy, 4 words apart for the reads of one word each
    assert (counts["shared_requests"], counts["shared_wavefronts"]) == (2, 4 + 4)
