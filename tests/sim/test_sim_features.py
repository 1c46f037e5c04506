"""What real-world kernels use: CUDA's headers, printf, and features that are named as missing."""

from __future__ import annotations

import os

import numpy as np
import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

from gpuconv.sim.compile import include_paths  # noqa: E402
from gpuconv.sim.signature import signatures  # noqa: E402


def has(header):
    return any(os.path.exists(os.path.join(path, header)) for path in include_paths())


GROUPS = r"""
#include <cooperative_groups.h>
#include <cuda/std/array>
#include <cuda_fp16.h>
namespace cg = cooperative_groups;
extern "C" __global__ void sums(float* y) {
    auto block = cg::this_thread_block();
    auto warp = cg::tiled_partition<32>(block);
    __shared__ float s[256];
    s[block.thread_rank()] = y[block.thread_rank()];
    block.sync();
    float v = s[255 - block.thread_rank()];
    for (int o = 16; o; o /= 2) v += warp.shfl_down(v, o);
    cuda::std::array<float, 2> a = {v, __half2float(__float2half(1.0f))};
    if (warp.thread_rank() == 0) y[block.thread_rank() / 32] = a[0] + a[1];
}
"""


@pytest.mark.skipif(not has("nv/target"), reason="nvidia-cuda-cccl is not installed")
def test_cooperative_groups_cccl_and_fp16_without_options():
    y = np.arange(256, dtype=np.float32)
    given = sim.asarray(y)
    sim.Module(GROUPS).launch("sums", 1, 256, (given,))
    assert np.array_equal(sim.asnumpy(given)[:8], y.reshape(8, 32)[::-1].sum(1) + 1)


PRINTS = r"""
extern "C" __global__ void talk(int n, int* counts) {
    counts[0] = printf("%s %d of %u: %5.2f|%-4d|%*d|%.*f\n", "thread", threadIdx.x, blockDim.x,
                       1.5f * n, n, 6, n, 1, 2.25);
    counts[1] = printf("%lld %x %c%% %i\n", 1ll << 40, 255, 'a' + threadIdx.x, -1);
    counts[2] = printf("plain\n");
}"""


@pytest.mark.parametrize("check", [False, True])
def test_printf_prints(check, capsys):
    counts = sim.zeros(3, np.int32)
    sim.Module(PRINTS, check=check).launch("talk", 1, 1, (7, counts))
    assert capsys.readouterr().out == (
        "thread 0 of 1: 10.50|7   |     7|2.2\n1099511627776 ff a% -1\nplain\n"
    )
    assert list(sim.asnumpy(counts)) == [9, 4, 0]


def test_results_of_calls_beside_barriers(capsys):
    """Of printf and of a function that is not inlined, in a kernel whose threads wait."""
    source = r"""
    __device__ __noinline__ int twice(int n) { return 2 * n; }
    extern "C" __global__ void k(int* y, int n) {
        y[threadIdx.x] = twice(n + threadIdx.x);
        __syncthreads();
        if (threadIdx.x == 0) y[1] += 100 * printf("%d %d\n", y[0], y[2]);
    }"""
    y = sim.zeros(4, np.int32)
    sim.Module(source, check=True).launch("k", 1, 4, (y, 5))
    assert list(sim.asnumpy(y)) == [10, 212, 14, 16]
    assert capsys.readouterr().out == "10 14\n"


def test_a_failed_assertion_says_which():
    source = "extern \"C\" __global__ void k(int n) {\n  assert(n > 3 && 'a');\n}"
    with pytest.raises(sim.KernelError, match=r"assertion failed: n > 3.*a\.cu:2"):
        sim.Module(source, name="a.cu").launch("k", 1, 1, (2,))


FEATURES = {
    "recursion (fac)": """__device__ __noinline__ int fac(int n) {
        return n < 2 ? 1 : n * fac(n - 1) + fac(n - 2); }
        extern "C" __global__ void k(int* y) { y[0] = fac(y[1]); }""",
    "a call through a pointer": """typedef int (*F)(int);
        __device__ int a(int x) { return x + 1; } __device__ int b(int x) { return x * 2; }
        __device__ F table[2] = {a, b}; extern "C" __global__ void k(int* y, int i) {
        y[0] = table[i](3); }""",
    "(or of a virtual function)": """struct A { __device__ virtual int f() = 0; };
        struct B : A { __device__ int f() override { return 1; } };
        struct C : A { __device__ int f() override { return 2; } };
        extern "C" __global__ void k(int* y, int i) {
        B b; C c; A* a = i ? (A*)&b : (A*)&c; y[0] = a->f(); }""",
    "special register %clock64": """

        extern "C" __global__ void k(long long* y) { y[0] = clock64(); }""",
    "'tex.1d": """
        extern "C" __global__ void k(float* y, cudaTextureObject_t t) {
        y[0] = tex1Dfetch<float>(t, 0); }""",
    "mma.h": "\n\n#include <mma.h>\n",
}
LINES = dict(zip(FEATURES, (2, 4, 5, 3, 3, 3), strict=True))


@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_not_modelled_is_named_with_the_users_line(feature):
    with pytest.raises(sim.UnsupportedError) as caught:
        sim.Module(FEATURES[feature], name="mine.cu")
    message = str(caught.value)
    assert message.startswith(f"mine.cu:{LINES[feature]}: ")
    assert feature in message
    assert "not modelled by the simulator" in message


def test_signatures_of_a_source():
    found = signatures("""
    // __global__ void not_this(int n);
    template <int N>
    __global__ void __launch_bounds__(256, 2)
    blur(float* __restrict__ y, const unsigned char *x, unsigned int n, size_t m = 3,
         float4 const* v, Real r, const float (&w)[3], half* h);
    extern "C" __global__ void empty(void) {}
    static __global__ __attribute__((noinline)) void last(long long a, double** p) {}
    """)
    assert list(found) == ["blur", "empty", "last"]
    blur = found["blur"]
    assert (blur.line, found["empty"].line, found["last"].line) == (5, 7, 8)
    kinds = [(p.name, p.pointer, p.dtype and p.dtype.name) for p in blur.parameters[:6]]
    assert kinds == [
        ("y", True, "float32"),
        ("x", True, "uint8"),
        ("n", False, "uint32"),
        ("m", False, "uint64"),
        ("v", True, "float32"),
        ("r", False, None),
    ]
    assert (blur.parameters[7].name, blur.parameters[7].dtype) == ("h", np.float16)
    assert not found["empty"].parameters
    assert [p.dtype.name for p in found["last"].parameters] == ["int64", "uint64"]


def test_printf_of_wrong_pointers_and_widths(capsys):
    """They do no harm to this process, whatever the kernel passes."""
    source = r"""
extern "C" __global__ void k(unsigned long long where) {
    printf("[%s|%s]\n", (const char*)where, "right");
    printf("%*d\n", 2000000000, 5);
    printf("%*d%1999999999d\n", -2000000000, 5, 6);
}
"""
    for where in (0, 16, (1 << 64) - 16):
        sim.Module(source).launch("k", 1, 1, (np.uint64(where),))
        first, second, third = capsys.readouterr().out.splitlines()
        assert first == f"[{f'(no string at {where:#x})' if where else '(null)'}|right]"
        assert second.strip() == "5"
        assert third.split() == ["5", "6"]
        assert max(len(second), len(third)) <= 2 * 4096
