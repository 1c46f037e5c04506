"""Whole kernels through NVRTC and the simulator, against NumPy and plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def run(source: str, name: str, grid, block, args, options=(), **keywords):
    """Launch without and with checks, which must write the same bytes to the arrays."""
    plain = sim.Module(source, options)
    before = [sim.asnumpy(a) if isinstance(a, sim.Array) else None for a in args]
    plain.launch(name, grid, block, args, **keywords)
    after = [sim.asnumpy(a) if isinstance(a, sim.Array) else None for a in args]
    checked = sim.Module(source, options, check=True)
    again = [sim.asarray(b) if b is not None else a for a, b in zip(args, before, strict=True)]
    checked.launch(name, grid, block, again, **keywords)
    for mine, other in zip(after, again, strict=True):
        if mine is not None:
            assert mine.tobytes() == sim.asnumpy(other).tobytes()


SAXPY = """
extern "C" __global__ void saxpy(float* y, const float* x, float a, long long n) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long
        long)gridDim.x * blockDim.x)
        y[i] = a * x[i] + y[i];
}"""


@pytest.mark.parametrize("n", [1, 31, 255, 256, 257, 100_003])
def test_saxpy(rng, n):
    x, y = rng.standard_normal(n, np.float32), rng.standard_normal(n, np.float32)
    device = sim.asarray(y)
    run(SAXPY, "saxpy", 7, 128, (device, sim.asarray(x), 2.5, n))
    assert np.array_equal(sim.asnumpy(device), np.float32(2.5) * x + y)


def test_products_and_sums_are_fused_on_request(rng):
    x, y = rng.standard_normal((2, 1000), np.float32)
    device = sim.asarray(y)
    module = sim.Module(SAXPY, ["-fmad=true"])
    module.launch("saxpy", 7, 128, (device, sim.asarray(x), 2.3, 1000))
    once = np.float64(np.float32(2.3)) * x + y  # exact in float64 but for the sum's last bits
    assert np.array_equal(sim.asnumpy(device), once.astype(np.float32))
    assert not np.array_equal(sim.asnumpy(device), np.float32(2.3) * x + y)


SGEMM = """
extern "C" __global__ void __launch_bounds__(256) sgemm(float* __restrict__ C, const float*
    __restrict__ A,
                                                        const float* __restrict__ B, int M, int N,
                                                            int K) {
    __shared__ __align__(16) float As[2][8][128], Bs[2][8][128];
    const int t = threadIdx.x, tx = t % 16, ty = t / 16, row = blockIdx.y * 128, col = blockIdx.x *
        128;
    const int ar = t / 2, ac = t % 2 * 4, br = t / 32, bc = t % 32 * 4;
    float acc[8][8] = {};
    float4 a4 = *(const float4*)&A[(row + ar) * K + ac], b4 = *(const float4*)&B[br * N + col + bc];
    As[0][ac][ar] = a4.x; As[0][ac + 1][ar] = a4.y; As[0][ac + 2][ar] = a4.z; As[0][ac + 3][ar] =
        a4.w;
    *(float4*)&Bs[0][br][bc] = b4;
    __syncthreads();
    int buffer = 0;
    for (int k0 = 0; k0 < K; k0 += 8) {
        if (k0 + 8 < K) {
            a4 = *(const float4*)&A[(row + ar) * K + k0 + 8 + ac];
            b4 = *(const float4*)&B[(k0 + 8 + br) * N + col + bc];
        }
        #pragma unroll
        for (int k = 0; k < 8; ++k) {
            float a[8], b[8];
            *(float4*)&a[0] = *(float4*)&As[buffer][k][ty * 4]; *(float4*)&a[4] =
                *(float4*)&As[buffer][k][64 + ty * 4];
            *(float4*)&b[0] = *(float4*)&Bs[buffer][k][tx * 4]; *(float4*)&b[4] =
                *(float4*)&Bs[buffer][k][64 + tx * 4];
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                #pragma unroll
                for (int j = 0; j < 8; ++j) acc[i][j] += a[i] * b[j];
        }
        if (k0 + 8 < K) {
            buffer ^= 1;
            As[buffer][ac][ar] = a4.x; As[buffer][ac + 1][ar] = a4.y;
            As[buffer][ac + 2][ar] = a4.z; As[buffer][ac + 3][ar] = a4.w;
            *(float4*)&Bs[buffer][br][bc] = b4;
            __syncthreads();
        }
    }
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; j += 4) {
            const int r = row + (i < 4 ? ty * 4 + i : 60 + ty * 4 + i), c = col + (j < 4 ? tx * 4 :
                64 + tx * 4);
            *(float4*)&C[r * N + c] = make_float4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j
                + 3]);
        }
}"""


def test_tiled_sgemm_within_the_proved_bound(rng):
    M, N, K = 256, 128, 72
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    c = sim.empty((M, N))
    run(SGEMM, "sgemm", (N // 128, M // 128), 256, (c, sim.asarray(a), sim.asarray(b), M, N, K))
    unit = 2.0**-24
    gamma = K * unit / (1 - K * unit)
    error = np.abs(sim.asnumpy(c) - a.astype(np.float64) @ b.astype(np.float64))
    assert not (error > gamma * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))).any()


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_sgemm_bits_do_not_depend_on_the_order(rng, order, seed):
    a, b = (sim.asarray(rng.standard_normal((256, 256), np.float32)) for _ in range(2))
    module, results = sim.Module(SGEMM), []
    for given in ("forward", order):
        c = sim.empty((256, 256))
        module.launch("sgemm", (2, 2), 256, (c, a, b, 256, 256, 256), order=given, seed=seed)
        results.append(sim.asnumpy(c).tobytes())
    assert results[0] == results[1]


REDUCE = """
extern "C" __global__ void total(float* out, const float* x, int n) {
    __shared__ float partial[32];
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum +=
        x[i];
    for (int offset = 16; offset; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
        for (int offset = 16; offset; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
        if (threadIdx.x == 0) out[blockIdx.x] = sum;
    }
}
extern "C" __global__ void tree(float* out, const float* x) {
    extern __shared__ float s[];
    s[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) s[threadIdx.x] = fmaxf(s[threadIdx.x], s[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = s[0];
}"""


@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_block_reductions(rng, threads):
    x = rng.integers(-50, 50, 9000).astype(np.float32)  # sums of small integers are exact
    out = sim.empty(3)
    run(REDUCE, "total", 3, threads, (out, sim.asarray(x), x.size))
    assert sim.asnumpy(out).sum() == x.sum()
    y = rng.standard_normal(4 * threads, np.float32)
    out = sim.empty(4)
    run(REDUCE, "tree", 4, threads, (out, sim.asarray(y)), shared=4 * threads)
    assert np.array_equal(sim.asnumpy(out), y.reshape(4, threads).max(1))


WARP = """
extern "C" __global__ void warp(unsigned* out, const unsigned* x, int mode) {
    const unsigned t = threadIdx.x, lane = t & 31, v = x[t];
    unsigned r = 0;
    if (mode == 0) r = __shfl_up_sync(~0u, v, 3);
    if (mode == 1) r = __shfl_down_sync(~0u, v, 5, 16);
    if (mode == 2) r = __shfl_xor_sync(~0u, v, 9);
    if (mode == 3) r = __shfl_sync(~0u, v, v & 31);
    if (mode == 4) r = __shfl_sync(~0u, v, 3, 8);
    if (mode == 5) r = __ballot_sync(~0u, v & 1);
    if (mode == 6) r = __all_sync(~0u, v < 1000) * 2 + __any_sync(~0u, v == x[7]);
    if (mode == 7) r = __match_any_sync(~0u, v % 5);
    if (mode == 8) r = __reduce_add_sync(~0u, v);
    if (mode == 9) r = (unsigned)__reduce_min_sync(~0u, (int)(v - 500));
    if (mode == 10) { r = 7; if (lane & 1) r = __shfl_xor_sync(0xaaaaaaaau, v, 2); }
    if (mode == 11) { int all; r = __match_all_sync(~0u, 4u, &all); r += all; }
    if (mode == 12) { r = 0; if (lane < 11) r = __activemask(); }
    if (mode == 13) { if (lane < 16) r = __ballot_sync(0xffffu, v & 2); else r =
        __ballot_sync(0xffff0000u, v & 4); }
    if (mode == 14) r = __syncthreads_count(v & 1);
    if (mode == 15) r = __syncthreads_and(v < 2000) + 2 * __syncthreads_or(v == 12345);
    if (mode == 16) r = __reduce_xor_sync(~0u, v);
    out[t] = r;
}"""


def test_warp_collectives(rng):
    x = rng.integers(0, 1000, 64).astype(np.uint32)
    lane, base = np.arange(64) % 32, np.arange(64) // 32 * 32

    def per_warp(function):
        return np.concatenate([np.broadcast_to(function(x[w : w + 32]), 32) for w in (0, 32)])

    def bits(flags) -> int:
        return sum(1 << k for k, flag in enumerate(flags) if flag)

    expected = {
        0: x[np.where(lane >= 3, np.arange(64) - 3, np.arange(64))],
        1: x[np.where(lane % 16 + 5 < 16, np.minimum(np.arange(64) + 5, 63), np.arange(64))],
        2: x[base + (lane ^ 9)],
        3: x[base + (x & 31).astype(int)],
        4: x[base + lane // 8 * 8 + 3],
        5: per_warp(lambda w: bits(w & 1)),
        6: per_warp(lambda w: 2 * int((w < 1000).all()) + int((w == x[7]).any())),
        7: np.concatenate([[bits(w % 5 == v % 5) for v in w] for w in (x[:32], x[32:])]),
        8: per_warp(lambda w: w.sum()),
        9: per_warp(lambda w: (int(w.min()) - 500) % 2**32),
        10: np.where(lane & 1, x[base + (lane ^ 2)], 7),
        11: np.zeros(64, np.int64) + 0,
        12: np.where(lane < 11, 2**11 - 1, 0),
        13: per_warp(lambda w: np.array([bits(w[:16] & 2)] * 16 + [bits(w[16:] & 4) << 16] * 16)),
        14: np.full(64, (x & 1).sum()),
        15: np.full(64, 1),
        16: per_warp(lambda w: np.bitwise_xor.reduce(w)),
    }
    expected[11] = np.full(64, 0xFFFFFFFF + 1)
    for mode, want in expected.items():
        out = sim.empty(64, np.uint32)
        run(WARP, "warp", 1, 64, (out, sim.asarray(x), mode))
        assert np.array_equal(
            sim.asnumpy(out), np.asarray(want).astype(np.uint64).astype(np.uint32)
        ), mode


ATOMICS = """
extern "C" __global__ void histogram(unsigned* bins, const unsigned char* x, int n) {
    __shared__ unsigned mine[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) mine[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&mine[x[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&bins[i], mine[i]);
}
extern "C" __global__ void extremes(int* low, unsigned* high, unsigned long long* sum, unsigned*
    bits, const int* x) {
    const int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    atomicMin(low, v);
    atomicMax(high, (unsigned)v);
    atomicAdd(sum, (unsigned long long)(long long)v);
    atomicOr(bits, 1u << (v & 31));
    atomicXor(bits + 1, (unsigned)v);
    atomicAnd(bits + 2, (unsigned)v);
}
extern "C" __global__ void ticket(unsigned* next, unsigned* who, float* total, unsigned* wrap) {
    const unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
    who[atomicAdd(next, 1u)] = t;
    atomicAdd(total, 0.5f);
    atomicInc(wrap, 6u);
    atomicDec(wrap + 1, 6u);
    if (t == 5) { atomicExch(wrap + 2, 77u); atomicCAS(wrap + 3, 0u, 99u); atomicCAS(wrap + 4, 1u,
        99u); }
}"""


def test_atomics(rng):
    x = rng.integers(0, 256, 10_007).astype(np.uint8)
    bins = sim.zeros(256, np.uint32)
    run(ATOMICS, "histogram", 5, 96, (bins, sim.asarray(x), x.size))
    assert np.array_equal(sim.asnumpy(bins), np.bincount(x, minlength=256))
    v = rng.integers(-(2**31), 2**31, 512).astype(np.int32)
    low, high = sim.asarray(np.array([5], np.int32)), sim.zeros(1, np.uint32)
    total, words = sim.zeros(1, np.uint64), sim.asarray(np.array([0, 0, 0xFFFFFFFF], np.uint32))
    run(ATOMICS, "extremes", 4, 128, (low, high, total, words, sim.asarray(v)))
    assert sim.asnumpy(low)[0] == min(v.min(), 5)
    assert sim.asnumpy(high)[0] == v.view(np.uint32).max()
    assert int(sim.asnumpy(total)[0]) == int(v.astype(np.int64).sum()) % 2**64
    u = v.view(np.uint32)
    want = [
        np.bitwise_or.reduce(np.uint32(1) << (u & 31)),
        np.bitwise_xor.reduce(u),
        np.bitwise_and.reduce(u),
    ]
    assert sim.asnumpy(words).tolist() == [int(w) for w in want]
    for check in (False, True):  # with checks, atomics let other threads go first
        who, sums, wrap = sim.zeros(96, np.uint32), sim.zeros(1), sim.zeros(5, np.uint32)
        args = sim.zeros(1, np.uint32), who, sums, wrap
        sim.Module(ATOMICS, check=check).launch("ticket", 3, 32, args)
        assert sorted(sim.asnumpy(who).tolist()) == list(range(96))
        assert sim.asnumpy(sums)[0] == 48
        assert sim.asnumpy(wrap).tolist() == [96 % 7, (-96) % 7, 77, 99, 0]


PIECES = """
__constant__ float table[4] = {1.5f, -2.0f, 3.25f, 4.0f};
__device__ int counter = 3;
__device__ float both[2][3] = {{1, 2, 3}, {4, 5, 6}};
struct Pair { float x; int n; double z; };
__device__ __noinline__ float twice(float v) { return v + v + table[1]; }
__device__ __noinline__ float nested(float v, int n) { return n > 2 ? twice(v) : twice(v) * 2; }
extern "C" __global__ void pieces(float* out, Pair p, int n, signed char c, unsigned short h,
    double d, bool flag) {
    const int t = threadIdx.x;
    float local[8];
    for (int i = 0; i < 8; ++i) local[i] = i * p.x;
    float r = local[(t * 3 + n) & 7] + nested(t, t);
    switch (t) {
        case 0: r += 1; break; case 1: r *= 3; break; case 2: r -= p.n; break; case 3: r = table[n
            & 3]; break;
        case 4: r += both[1][n % 3]; break; case 5: r += c; break; case 6: r += h; break; case 7: r
            += (float)(d + p.z);
        break; case 8: r = flag ? -r : r; break; case 9: r += counter; break; default: r = -1;
    }
    out[t] = r;
}"""


def test_parameters_tables_calls_and_local_arrays():
    pair = np.zeros(1, np.dtype([("x", "f4"), ("n", "i4"), ("z", "f8")]))
    pair["x"], pair["n"], pair["z"] = 0.5, 7, 0.25
    out = sim.empty(12)
    run(PIECES, "pieces", 1, 12, (out, pair.tobytes(), 5, -3, 600, 1.5, True))
    want = []
    for t in range(12):
        twice = t + t - 2.0
        r = ((t * 3 + 5) & 7) * 0.5 + (twice if t > 2 else twice * 2)
        r = {
            0: r + 1,
            1: r * 3,
            2: r - 7,
            3: -2.0,
            4: r + 6,
            5: r - 3,
            6: r + 600,
            7: r + 1.75,
            8: -r,
            9: r + 3,
        }.get(t, -1)
        want.append(r)
    assert sim.asnumpy(out).tolist() == want


MATH = """
extern "C" __global__ void math(float* y, const float* x, int n, int which) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = x[i];
    switch (which) {
        case 0: y[i] = expf(v); break;
        case 1: y[i] = tanhf(v); break;
        case 2: y[i] = logf(fabsf(v) + 1e-3f); break;
        case 3: y[i] = sqrtf(fabsf(v)); break;
        case 4: y[i] = powf(fabsf(v) + 0.1f, 1.7f); break;
        case 5: y[i] = 1.0f / (1.0f + expf(-v)); break;
        case 6: y[i] = sinf(v * 30); break;
        case 7: y[i] = __expf(v); break;
        case 8: y[i] = rsqrtf(fabsf(v) + 0.5f); break;
        case 9: y[i] = log1pf(expf(v)); break;
        case 10: y[i] = erff(v); break;
        case 11: y[i] = v / 3.0f; break;
        case 12: y[i] = fmodf(v * 10, 3.0f); break;
        case 13: y[i] = __fdividef(v, 7.0f); break;
        case 14: y[i] = cosf(v * 1e6f); break;
        case 15: y[i] = floorf(v * 3) + rintf(v * 5) + truncf(v * 7); break;
    }
}"""


def test_math_functions_are_within_a_few_units(rng):
    from scipy.special import erf

    x = rng.uniform(-5, 5, 999).astype(np.float32)
    d = x.astype(np.float64)
    single = lambda v: v.astype(np.float32).astype(np.float64)  # noqa: E731
    want = [
        np.exp(d),
        np.tanh(d),
        np.log(single(np.abs(d) + np.float32(1e-3))),
        np.sqrt(np.abs(d)),
        single(np.abs(d) + np.float32(0.1)) ** np.float64(np.float32(1.7)),
        1 / (1 + np.exp(-d)),
        np.sin(single(d * 30)),
        np.exp(d),
        1 / np.sqrt(np.abs(d) + 0.5),
        np.log1p(np.exp(d)),
        erf(d),
        d / 3,
        np.fmod(single(d * 10), 3),
        d / 7,
        np.cos(single(d * 1e6)),
        np.floor(single(d * 3)) + np.rint(single(d * 5)) + np.trunc(single(d * 7)),
    ]
    module = sim.Module(MATH)
    device = sim.asarray(x)
    for which, expected in enumerate(want):
        y = sim.empty(x.size)
        module.launch("math", 8, 128, (y, device, x.size, which))
        assert np.allclose(sim.asnumpy(y), expected, rtol=2e-6, atol=3e-7), which


def test_flush_to_zero_is_what_the_options_say():
    """A subnormal product is zero, as under CuPy, with the sign kept; a copy keeps its bits."""
    source = (
        'extern "C" __global__ void f(float* y, const float* x) {'
        " y[threadIdx.x] = x[threadIdx.x] * 0.5f; y[threadIdx.x + 4] = x[threadIdx.x]; }"
    )
    x = np.array([2.0**-126, -(2.0**-126), 2.0**-149, 2.0], np.float32)
    y = sim.empty(8)
    run(source, "f", 1, 4, (y, sim.asarray(x)))
    got = sim.asnumpy(y)
    assert got[:4].tolist() == [0, 0, 0, 1]
    assert np.signbit(got[:4]).tolist() == [False, True, False, False]
    assert np.array_equal(got[4:], x)
    y = sim.empty(8)
    sim.Module(source, ["-ftz=false"]).launch("f", 1, 4, (y, sim.asarray(x)))
    assert sim.asnumpy(y)[0] == np.float32(2.0**-127)


def test_magic_number_division(rng):
    source = """extern "C" __global__ void divide(unsigned* q, const unsigned* x, unsigned magic,
        int shift) {
        q[threadIdx.x] = __umulhi(x[threadIdx.x], magic) >> shift; }"""
    x = rng.integers(0, 2**31, 256).astype(np.uint32)
    for divisor in (3, 5, 7, 14, 28, 196):
        shift = int(divisor - 1).bit_length()
        magic = -(-(2 ** (31 + shift)) // divisor)
        q = sim.empty(256, np.uint32)
        run(source, "divide", 1, 256, (q, sim.asarray(x), magic, shift - 1))
        assert np.array_equal(sim.asnumpy(q), x // divisor)


HALF = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void half_math(__half* y, __nv_bfloat16* z, const float* x, float a) {
    const int i = threadIdx.x;
    const __half2 p = __floats2half2_rn(x[i], a);
    y[i] = __hfma(__low2half(p), __high2half(p), __float2half(1.0f));
    z[i] = __hadd(__float2bfloat16(x[i]), __float2bfloat16(a));
}"""


def test_sixteen_bit_floats(rng):
    if not any(Path(p, "cuda_fp16.h").exists() for p in sim.compile.include_paths()):
        pytest.skip("cuda_fp16.h is not installed (nvidia-cuda-runtime)")
    x = rng.standard_normal(64, np.float32)
    y, z = sim.empty(64, np.float16), sim.empty(64, np.uint16)
    run(HALF, "half_math", 1, 64, (y, z, sim.asarray(x), 0.75))
    assert np.array_equal(
        sim.asnumpy(y), (x.astype(np.float16).astype(np.float64) * 0.75 + 1).astype(np.float16)
    )
    bits = np.frombuffer(sim.asnumpy(z).tobytes(), np.uint16).astype(np.uint32) << 16
    assert np.abs(bits.view(np.float32) - (x + 0.75)).max() < 0.02


def test_two_and_three_dimensional_launches():
    source = """extern "C" __global__ void where(int* out) {
        const int b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        const int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        out[b * blockDim.x * blockDim.y * blockDim.z + t] = b * 1000 + t; }"""
    out = sim.empty(2 * 3 * 4 * 24, np.int32)
    run(source, "where", (2, 3, 4), (4, 3, 2), (out,))
    assert np.array_equal(
        sim.asnumpy(out), np.add.outer(np.arange(24) * 1000, np.arange(24)).ravel()
    )


NAMED = """
extern "C" __global__ void halves(int* out) {
    __shared__ int s[64];
    const int t = threadIdx.x;
    if (t < 32) {
        s[t] = t * t;
        asm volatile("bar.arrive 1, 64;");
        asm volatile("bar.sync 2, 64;");
        out[t] = s[32 + t];
    } else {
        s[t] = -t;
        asm volatile("bar.arrive 2, 64;");
        asm volatile("bar.sync 1, 64;");
        out[t] = s[t - 32];
    }
}"""


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_named_barriers(order, seed):
    out = sim.empty(64, np.int32)
    run(NAMED, "halves", 1, 64, (out,), order=order, seed=seed)
    t = np.arange(32)
    assert np.array_equal(sim.asnumpy(out), np.concatenate([-(t + 32), t * t]))


def test_any_number_of_cores_gives_the_same_bits():
    """Blocks write apart from each other; the second launch knows how long the first took."""
    source = """extern "C" __global__ void sums(float* y, const float* x, int n) {
        float sum = 0;
        for (int i = 0; i < n; ++i) sum += x[i] * (blockIdx.x + threadIdx.x);
        y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
    }"""
    module = sim.Module(source)
    x = sim.asarray(np.random.default_rng(0).standard_normal(3000).astype(np.float32))
    found, teams = set(), set()
    function = module.function("sums")
    team = function._team
    function._team = lambda *args: teams.add(team(*args)) or team(*args)
    for cores in (1, 2, 5, 5, None):
        y = sim.zeros(64 * 32)
        function.launch(64, 32, (y, x, 3000), cores=cores)
        found.add(sim.asnumpy(y).tobytes())
    assert len(found) == 1
    assert {1, 5} <= teams


def test_blocks_may_run_at_once_where_the_launch_says_that_their_order_is_nothing():
    """The last of them to arrive adds what all have left, in ascending order."""
    source = """extern "C" __global__ void sums(
        float* y, float* parts, const float* x, unsigned* ticket, int n) {
        __shared__ bool last;
        float sum = 0;
        for (int i = 0; i < n; ++i) sum += x[i] * (blockIdx.x + threadIdx.x);
        parts[blockIdx.x * blockDim.x + threadIdx.x] = sum;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
        __syncthreads();
        if (!last) return;
        sum = 0;
        for (int i = 0; i < gridDim.x; ++i) sum += __ldcg(parts + i * blockDim.x + threadIdx.x);
        y[threadIdx.x] = sum;
    }"""
    function = sim.Module(source).function("sums")
    x = sim.asarray(np.random.default_rng(0).standard_normal(1000).astype(np.float32))
    ticket, found, teams = sim.zeros(1, np.uint32), set(), []
    team = function._team
    function._team = lambda *args: teams.append(team(*args)) or teams[-1]
    for concurrent in (False, *[True] * 20):
        y, parts = sim.zeros(64), sim.empty(64 * 64)
        args = y, parts, x, ticket, 1000
        function.launch(64, 64, args, cores=3, concurrent=concurrent)
        found.add(sim.asnumpy(y).tobytes())
    assert len(found) == 1
    assert sim.asnumpy(ticket)[0] == 0
    assert teams[0] == 1
    assert 3 in teams


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_float_atomics_repeat_bit_for_bit(rng, order, seed):
    """Blocks that add floats atomically run one by one, so that even the rounding repeats."""
    source = """extern "C" __global__ void add(float* total, const float* x, int n) {
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
            atomicAdd(total, x[i]);
    }"""
    x, module, seen = (
        sim.asarray(rng.standard_normal(20_000, np.float32)),
        sim.Module(source),
        set(),
    )
    for _ in range(3):
        total = sim.zeros(1)
        module.launch("add", 40, 128, (total, x, 20_000), order=order, seed=seed)
        seen.add(sim.asnumpy(total).tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("arch", ["compute_75", "compute_90", "compute_100", "compute_120"])
def test_other_architectures_give_the_same_bits(rng, arch):
    """NVRTC writes different PTX for each architecture; a sum in a fixed order is the same."""
    x, a = sim.asarray(rng.standard_normal(4096, np.float32)), rng.standard_normal((128, 16))
    a, results = sim.asarray(a, np.float32), []
    for given in (arch, "compute_80"):
        out, c = sim.empty(4), sim.empty((128, 128))
        sim.Module(REDUCE, arch=given).launch("total", 4, 256, (out, x, 4096))
        arguments = (c, a, a, 128, 128, 16)
        sim.Module(SGEMM, arch=given).launch("sgemm", (1, 1), 256, arguments)
        y = sim.empty(4096)
        sim.Module(MATH, arch=given).launch("math", 16, 256, (y, x, 4096, 5))
        pieces = sim.empty(12)
        values = (pieces, bytes(16), 5, -3, 600, 1.5, True)
        sim.Module(PIECES, arch=given).launch("pieces", 1, 12, values)
        results.append([sim.asnumpy(r).tobytes() for r in (out, c, y, pieces)])
    assert results[0] == results[1]


def test_variables_of_a_module():
    source = """__constant__ float scale[4]; __device__ int calls;
    extern "C" __global__ void select(float* y) {
        y[threadIdx.x] = scale[threadIdx.x];
        if (!threadIdx.x) ++calls;
    }"""
    module, y = sim.Module(source), sim.empty(4)
    scale = module.variable("scale")
    assert sim.asnumpy(scale).tolist() == [0] * 4
    for k in range(4):
        scale[k].fill(k + 0.5)
    for _ in range(3):
        module.launch("select", 1, 4, (y,))  # a name that the C library has too
    assert sim.asnumpy(y).tolist() == [0.5, 1.5, 2.5, 3.5]
    assert sim.asnumpy(module.variable("calls", np.int32)).tolist() == [3]
    with pytest.raises(ValueError, match="no variable 'other' in this module, which uses: "):
        module.variable("other")


def test_several_python_threads_launch_at_once(rng):
    from concurrent.futures import ThreadPoolExecutor

    module = sim.Module(SGEMM)
    a, b = (sim.asarray(rng.standard_normal((256, 256), np.float32)) for _ in range(2))

    def one(_: int) -> bytes:
        c = sim.empty((256, 256))
        module.launch("sgemm", (2, 2), 256, (c, a, b, 256, 256, 256))
        return sim.asnumpy(c).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(16)))) == 1


def test_subnormals_in_atomics():
    """Float atomics flush in global memory and not in shared memory, as in the PTX ISA."""
    source = """extern "C" __global__ void f(float* y, const float* x) {
        __shared__ float s;
        s = 0;
        atomicAdd(&s, x[0]);
        atomicAdd(y, x[0]);
        y[1] = s;
    }"""
    y = sim.zeros(2)
    run(source, "f", 1, 1, (y, sim.asarray([2.0**-149], np.float32)))
    assert sim.asnumpy(y).tolist() == [0, 2.0**-149]


MANY = """
struct Tensors { float* p[40]; const float* g[40]; int n[40]; };
extern "C" __global__ void sgd_many(Tensors t, float lr) {
    float* p = t.p[blockIdx.x];
    const float* g = t.g[blockIdx.x];
    for (int i = threadIdx.x; i < t.n[blockIdx.x]; i += blockDim.x) p[i] -= lr * g[i];
}
extern "C" __global__ void sgd_table(float* const* p, const float* const* g, const int* n,
                                     float lr) {
    const int b = blockIdx.x;
    for (int i = threadIdx.x; i < n[b]; i += blockDim.x) p[b][i] -= lr * g[b][i];
}"""


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("by_table", [False, True])
def test_many_tensors_in_one_launch(rng, check, by_table):
    """Pointers inside a structure, and in an array of addresses."""
    sizes = [1, 7, 64, 100, 3]
    host = [[rng.standard_normal(n).astype(np.float32) for n in sizes] for _ in range(2)]
    p, g = ([sim.asarray(x) for x in xs] for xs in host)
    module = sim.Module(MANY, check=check)
    if by_table:
        tables = [sim.asarray(np.array([a.ptr for a in xs], np.uint64)) for xs in (p, g)]
        arguments = (*tables, sim.asarray(np.array(sizes, np.int32)), 0.5)
        module.launch("sgd_table", len(sizes), 32, arguments)
    else:
        record = np.zeros(1, np.dtype([("p", "u8", 40), ("g", "u8", 40), ("n", "i4", 40)]))
        for k, n in enumerate(sizes):
            record["p"][0, k], record["g"][0, k], record["n"][0, k] = p[k].ptr, g[k].ptr, n
        module.launch("sgd_many", len(sizes), 32, (record.tobytes(), 0.5))
    for mine, before, gradient in zip(p, *host, strict=True):
        assert np.array_equal(sim.asnumpy(mine), before - np.float32(0.5) * gradient)


def test_an_unchecked_launch_may_write_through_a_table():
    y = sim.empty(4)
    table = sim.asarray(np.array([y.ptr], np.uint64))
    source = """extern "C" __global__ void put(float** t) { t[0][threadIdx.x] = 3; }
    extern "C" __global__ void copy(float* z, const float* y) {
        z[threadIdx.x] = y[threadIdx.x];
    }"""
    sim.Module(source).launch("put", 1, 4, (table,))
    z = sim.empty(4)
    sim.Module(source, check=True).launch("copy", 1, 4, (z, y))
    assert sim.asnumpy(z).tolist() == [3] * 4
