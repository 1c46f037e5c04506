"""The errors that the simulator reports, with their messages, and correct kernels that pass."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)


def kernel(body: str, parameters: str = "float* y, const float* x, int n", before: str = "") -> str:
    return f'{before}extern "C" __global__ void k({parameters}) {{\n{body}\n}}'


def launch(body: str, grid=1, block=32, args=None, check=True, shared=0, **words):
    args = (sim.zeros(64), sim.zeros(64), 64) if args is None else args
    sim.Module(kernel(body, **words), name="broken.cu", check=check).launch(
        "k", grid, block, args, shared=shared
    )


# ---- before anything runs ------------------------------------------------------------------------


def test_compile_error_quotes_the_line_and_keeps_the_log():
    with pytest.raises(
        sim.CompileError, match=r"NVRTC refused broken.cu.*broken.cu\(2\): error.*undefined"
    ) as caught:
        sim.Module(kernel("y[0] = nothing;"), name="broken.cu")
    assert "nothing" in caught.value.log


def test_without_nvrtc_one_line_says_what_to_install(monkeypatch):
    from gpuconv.sim import compile as nvrtc

    def missing():
        raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(nvrtc, "_nvrtc", missing)
    monkeypatch.setattr(nvrtc, "_RELEASE", ())
    assert "pip install 'gpuconv[sim]'" in sim.available()
    for build in (sim.Module, sim.to_ptx, sim.to_cubin):
        with pytest.raises(sim.CompileError, match=r"pip install 'gpuconv\[sim\]'"):
            build(kernel("y[0] = 123;"))


def test_options_must_be_a_sequence():
    with pytest.raises(TypeError, match="sequence of strings"):
        sim.to_ptx(kernel(""), "-DVEC=4")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('asm volatile("mov.u32 %0, %%clock;" : "=r"(n));', "special register %clock"),
        ('asm volatile("cp.async.bulk.commit_group;");', "cp.async.bulk.commit_group"),
        ("double a = __dadd_rz(y[0], 1.0); y[0] = a;", "add.rz.f64"),
    ],
)
def test_what_is_not_modelled_is_refused_by_line(code, words):
    source = kernel(f"if (n > 3) {{\n{code}\n}} y[1] = n;")
    with pytest.raises(sim.UnsupportedError, match=rf"broken.cu:3: .*{re.escape(words)}"):
        sim.Module(source, name="broken.cu")


def test_recursion_is_refused():
    before = "__device__ __noinline__ int f(int n) { return n < 2 ? n : f(n - 1) + f(n - 2); }\n"
    with pytest.raises(sim.UnsupportedError, match="recursion"):
        sim.Module(kernel("y[0] = f(n);", before=before))


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (lambda y: (y, y), TypeError, "k takes 3 arguments, got 2"),
        (lambda y: (np.zeros(4), y, 1), TypeError, "argument 0 got a NumPy array"),
        (lambda y: (None, y, 1), TypeError, "argument 0 is a pointer: give a sim array, got None"),
        (lambda y: (4096, y, 1), TypeError, "argument 0 is a pointer"),
        (lambda y: (y, y, 1.5), TypeError, "argument 2 is an integer"),
        (lambda y: (y, y, y), TypeError, "argument 2 is a number"),
        (lambda y: (y, y, 2**32), ValueError, "argument 2 has 32 bits: 4294967296 does not fit"),
    ],
)
def test_wrong_arguments(args, error, words):
    with pytest.raises(error, match=re.escape(words)):
        launch("y[0] = x[0] + n;", args=args(sim.zeros(4)))


def test_scalars_are_cast_to_the_declared_type():
    source = kernel(
        "y[0] = a; y[1] = d; y[2] = h + c; y[3] = w;",
        "float* y, float a, double d, short h, unsigned char c, long long w",
    )
    y = sim.zeros(4)
    module = sim.Module(source)
    module.launch("k", 1, 1, (y, 3, 2, -5, 200, -(2**40)))
    assert sim.asnumpy(y).tolist() == [3, 2, 195, -(2.0**40)]
    module.launch("k", 1, 1, (y, np.float64(0.5), np.float32(2), np.int64(7), True, 1))
    assert sim.asnumpy(y).tolist() == [0.5, 2, 8, 1]
    for wrong, words in (
        ((y, "1", 2, 3, 4, 5), "argument 1 is f32"),
        ((y, 1e300, 2, 3, 4, 5), "does not fit"),
        ((y, 1, 2, 40000000, 4, 5), "argument 3 has 16 bits"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            module.launch("k", 1, 1, wrong)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "words"),
    [
        (1, 1025, 0, "block.x must be at most 1024, got 1025"),
        (1, (32, 33), 0, "at most 1024 threads"),
        (1, (1, 1, 65), 0, "block.z must be at most 64"),
        (0, 32, 0, "grid.x must be at least 1"),
        ((1, 65536), 32, 0, "grid.y must be at most 65535"),
        (1, 32, 228 * 1024, "no architecture has more"),
    ],
)
def test_launch_limits(grid, block, shared, words):
    with pytest.raises(sim.LaunchError, match=re.escape(words)):
        launch("y[0] = 1;", grid, block, shared=shared)


def test_launch_bounds_and_static_shared_memory_are_limits():
    y = sim.zeros(4)
    bounded = 'extern "C" __global__ void __launch_bounds__(64) k(float* y) { y[0] = 1; }'
    with pytest.raises(sim.LaunchError, match="allow 64 threads"):
        sim.Module(bounded).launch("k", 1, 96, (y,))
    big = "__shared__ float s[13000]; s[threadIdx.x] = n; __syncthreads(); y[0] = s[0];"
    with pytest.raises(sim.LaunchError, match="52000 bytes of static shared memory"):
        launch(big)


def test_names_and_orders():
    module = sim.Module(kernel("y[0] = 1;"))
    with pytest.raises(ValueError, match="no kernel 'missing' in this module, which has: k"):
        module.launch("missing", 1, 1, ())
    with pytest.raises(ValueError, match="order must be"):
        module.launch("k", 1, 1, (sim.zeros(1), sim.zeros(1), 1), order="random")
    with pytest.raises(ValueError, match="k: cores must be at least 1, got 0"):
        module.launch("k", 1, 1, (sim.zeros(1), sim.zeros(1), 1), cores=0)
    with pytest.raises(ValueError, match="grid takes one to three integers"):
        module.launch("k", 1.5, 1, (sim.zeros(1), sim.zeros(1), 1))


# ---- while it runs: found always -----------------------------------------------------------------


def found(kind: str, words: str, body: str, **how):
    with pytest.raises(sim.KernelError, match=words) as caught:
        launch(body, **how)
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("check", [False, True])
def test_deadlock_names_who_waits_where(check):
    body = """if (threadIdx.x < 16) {
    __shfl_sync(~0u, n, 0);
} else if (threadIdx.x < 20) {
    __syncthreads();
}
y[threadIdx.x] = 1;"""
    error = found(
        "deadlock",
        r"threads 0-15 wait at broken.cu:3 for a shuffle with mask 0xffffffff; threads 16-19 wait "
        r"at broken.cu:5 for a barrier; threads 20-31 are done$",
        body,
        check=check,
    )
    assert error.line == "broken.cu:3"


@pytest.mark.parametrize("check", [False, True])
def test_barrier_with_too_few_threads_deadlocks(check):
    found(
        "deadlock", "threads 0-31 wait", 'asm volatile("bar.sync 1, 64;"); y[0] = n;', check=check
    )


@pytest.mark.parametrize("check", [False, True])
def test_divergent_barrier(check):
    found(
        "divergent",
        "lanes of one warp wait at different instructions",
        "if (threadIdx.x < 16) __syncthreads();\nelse __syncthreads();\ny[0] = n;",
        check=check,
    )


@pytest.mark.parametrize("check", [False, True])
def test_wrong_mask(check):
    found(
        "mask",
        "lane 4 called a warp collective with mask 0x0000000f",
        "y[threadIdx.x] = __shfl_sync(0xf, n, 0);",
        check=check,
    )


SPIN = """__shared__ volatile int flag; __shared__ int value;
if (threadIdx.x == 0) flag = 0;
__syncthreads();
if (threadIdx.x == 0) { WAIT y[0] = value; }
if (threadIdx.x == 40) { value = 5; __threadfence_block(); flag = n; }"""


@pytest.mark.parametrize("check", [False, True])
def test_spinning_on_a_flag_lets_the_other_threads_run(check):
    y = sim.zeros(1)
    launch(SPIN.replace("WAIT", "while (flag != 7);"), block=64, check=check, args=(y, y, 7))
    assert sim.asnumpy(y)[0] == 5
    found(
        "deadlock",
        "thread 0 waits at broken.cu:5 for a change of memory",
        SPIN.replace("WAIT", "while (flag != 8);"),
        block=64,
        check=check,
        args=(y, y, 7),
    )


def test_barrier_numbers():
    found("barrier_count", "barrier 1 with count 33", 'asm volatile("bar.sync 1, 33;"); y[0] = n;')
    found(
        "disagree",
        "different counts",
        'if (threadIdx.x < 32) asm volatile("bar.sync 1, 32;");\n'
        'else asm volatile("bar.sync 1, 64;"); y[0] = n;',
        block=96,
    )


@pytest.mark.parametrize("check", [False, True])
def test_trap_and_assert(check):
    found(
        "trap",
        r"trap, thread \(3, 0, 0\) of block \(0, 0, 0\)",
        "if (threadIdx.x == 3) __trap(); y[threadIdx.x] = 1;",
        check=check,
    )
    declared = (
        'extern "C" __device__ void __assertfail(const char*, const char*, unsigned, const char*,'
        " size_t);\n#define assert(c)"
        " ((c) ? (void)0 : __assertfail(#c, __FILE__, __LINE__, __func__, 1))\n"
    )
    found(
        "assert",
        "assertion failed: n < 5",
        "assert(n < 5); y[0] = 1;",
        check=check,
        before=declared,
    )


# ---- with check=True -----------------------------------------------------------------------------


def test_out_of_bounds_global():
    error = found(
        "bounds_global",
        r"write of 4 bytes at element 64 of argument 0, which has 64 elements, thread "
        r"\(0, 0, 0\) of block \(2, 0, 0\) at broken.cu:3$",
        "const int i = blockIdx.x * 32 + threadIdx.x;\ny[i] = 1;",
        grid=3,
    )
    assert error.line == "broken.cu:3"
    found(
        "bounds_global",
        r"read of 4 bytes at element -1 of argument 1, which has",
        "y[0] = x[(int)threadIdx.x - 1];",
    )
    launch("const int i = blockIdx.x * 32 + threadIdx.x; if (i < n) y[i] = 1;", grid=3)


@pytest.mark.parametrize("past", [0, 1, 31, 127])
def test_the_neighbouring_buffer_is_out_of_reach(past):
    """There are guard bytes between arrays that are allocated one after another."""
    arrays = [sim.zeros(64) for _ in range(4)]
    for array in arrays:
        for index in (64 + past, -1 - past):
            words = f"element {index} of argument 0, which has 64 elements"
            found("bounds_global", words, f"y[{index}] = 1;", block=1, args=(array, array, 1))
        launch("y[63] = 1; y[0] = 2;", block=1, args=(array, array, 1))


def test_out_of_bounds_vector_at_the_edge():
    y = sim.zeros(6)
    found(
        "bounds_global",
        "16 bytes",
        "((float4*)y)[1] = make_float4(1, 2, 3, 4);",
        args=(y, sim.zeros(1), 1),
    )
    assert sim.asnumpy(y).tolist() == [0] * 6


def test_out_of_bounds_shared_and_local():
    shared = (
        "__shared__ float s[32]; s[threadIdx.x + n] = 1; __syncthreads();"
        " y[threadIdx.x] = s[31 - threadIdx.x];"
    )
    found(
        "bounds_shared",
        "write of 4 bytes at byte 128 of s, which has 128 bytes",
        shared,
        args=(sim.zeros(32), sim.zeros(1), 1),
    )
    launch(shared, args=(sim.zeros(32), sim.zeros(1), 0))
    local = (
        "float a[8]; for (int i = 0; i < 8; ++i) a[i] = i; a[n & 15] = 9;"
        " y[0] = a[(n + 1) & 15] + a[n & 3];"
    )
    args = sim.zeros(1), sim.zeros(1)
    found(
        "bounds_local",
        "write of 4 bytes at local address .*, outside every local array",
        local,
        block=1,
        args=(*args, 9),
    )
    launch(local, block=1, args=(*args, 5))


def test_messages_name_variables_and_arrays():
    filters = "__constant__ float filters[5] = {1, 2, 3, 4, 5};\n"
    words = "read of 4 bytes at byte 20 of filters, which has 20 bytes"
    found("bounds_global", words, "y[0] = filters[n / 13 + 1];", before=filters, block=1)
    dynamic = "extern __shared__ float s[]; s[threadIdx.x] = 1; __syncthreads(); "
    words = "read of 4 bytes at byte -4 of dynamic shared memory, which has 128 bytes"
    last = "y[threadIdx.x] = s[(int)threadIdx.x - 1];"
    found("bounds_shared", words, dynamic + last, shared=128)
    words = "read of 8 bytes at element 6 of argument 1 and past the last of its 7"
    body = "float2 v = ((const float2*)x)[3]; y[0] = v.x * v.y;"
    found("bounds_global", words, body, args=(sim.zeros(1), sim.zeros(7), 1))


def test_shared_variables_do_not_run_into_each_other():
    body = """__shared__ float a[32], b[32]; a[threadIdx.x] = 1; b[threadIdx.x] = 2;
__syncthreads();
y[threadIdx.x] = a[threadIdx.x + n] + b[31 - threadIdx.x];"""
    found(
        "bounds_shared",
        "read of 4 bytes at byte 128 of a, which has 128 bytes",
        body,
        args=(sim.zeros(32), sim.zeros(1), 1),
    )
    launch(body, args=(sim.zeros(32), sim.zeros(1), 0))


def test_dynamic_shared_memory_is_bounded_by_the_launch():
    body = (
        "extern __shared__ float s[]; s[threadIdx.x] = n; __syncthreads();"
        " y[threadIdx.x] = s[31 - threadIdx.x];"
    )
    launch(body, shared=128)
    found(
        "bounds_shared",
        "byte 124 of dynamic shared memory, which has 124 bytes",
        body,
        shared=124,
    )


def test_misaligned():
    x = sim.asarray(np.arange(65, dtype=np.float32))
    body = "const float4 v = *(const float4*)(x + n); y[threadIdx.x] = v.x + v.y + v.z + v.w;"
    found(
        "misaligned",
        "read of 16 bytes at element 2 of argument 1, at an address that is not a multiple",
        body,
        args=(sim.zeros(32), x, 2),
    )
    launch(body, args=(sim.zeros(32), x, 4))


def test_uninitialised():
    body = "y[threadIdx.x] = x[threadIdx.x];"
    found(
        "uninitialised",
        "element 0 of argument 1, which was never",
        body,
        args=(sim.zeros(32), sim.empty(32), 1),
    )
    x = sim.empty(32)
    launch("y[threadIdx.x] = 2;", args=(x, x, 1))  # a checked kernel writes it
    launch(body, args=(sim.zeros(32), x, 1))
    x = sim.empty(32)
    launch("y[threadIdx.x] = 2;", args=(x, x, 1), check=False)  # an unchecked one too
    launch(body, args=(sim.zeros(32), x, 1))
    found(
        "uninitialised",
        "4 bytes",
        "__shared__ float s[32]; if (threadIdx.x) s[threadIdx.x] = 1; __syncthreads();"
        " y[threadIdx.x] = s[threadIdx.x];",
    )


def test_use_of_freed_memory():
    sim.Module(kernel(""), check=True)  # from now on freed memory is kept aside for a while
    table = sim.asarray(np.array([sim.zeros(32).ptr], np.uint64))
    found(
        "freed",
        "which has been freed",
        "y[0] = (*(const float* const*)x)[threadIdx.x];",
        args=(sim.zeros(1), table, 1),
    )
    alive = sim.zeros(32)
    table = sim.asarray(np.array([alive.ptr], np.uint64))
    body = "y[threadIdx.x] = (*(const float* const*)x)[threadIdx.x];"
    launch(body, args=(sim.zeros(32), table, 1))


def test_division_by_zero():
    found("division", "integer division by zero", "y[0] = 7 / (n - 64);")
    launch("y[0] = 7 / (n - 64);", check=False)  # unspecified on the device, no crash here


def test_early_exit_before_a_barrier():
    body = (
        "if (threadIdx.x >= n) return;\n__shared__ float s[32]; s[threadIdx.x] = n;"
        " __syncthreads();"
        " y[threadIdx.x] = s[0];"
    )
    found(
        "early_exit", "completed without 12 threads", body, args=(sim.zeros(32), sim.zeros(1), 20)
    )
    launch(body, args=(sim.zeros(32), sim.zeros(1), 32))
    launch(body, args=(sim.zeros(32), sim.zeros(1), 20), check=False)


def test_missing_barrier_shows_when_threads_run_in_reverse():
    body = (
        "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x; {}"
        " y[threadIdx.x] = s[(threadIdx.x + 63) % 64];"
    )
    want = np.roll(np.arange(64), 1).tolist()
    for barrier in ("__syncthreads();", ""):
        results = []
        for order in ("forward", "reverse"):
            y = sim.zeros(64)
            sim.Module(kernel(body.replace("{}", barrier))).launch(
                "k", 1, 64, (y, y, 1), order=order
            )
            results.append(sim.asnumpy(y).tolist() == want)
        assert all(results) == bool(barrier)


def test_a_failed_launch_leaves_the_module_usable():
    module = sim.Module(kernel("y[threadIdx.x + n] = 1;"), check=True)
    y = sim.zeros(32)
    for _ in range(2):
        with pytest.raises(sim.KernelError):
            module.launch("k", 1, 32, (y, y, 1))
        module.launch("k", 1, 32, (y, y, 0))
    assert sim.asnumpy(y).tolist() == [1] * 32


ENDLESS = """
import gpuconv.sim as sim
source = 'extern "C" __global__ void k(float* y, int n) {' \\
         ' while (n) asm volatile("xor.b32 %0, %0, 2;" : "+r"(n)); y[0] = 1; }'
module, y = sim.Module(source, check=True), sim.zeros(1)
print("running", flush=True)
try:
    module.launch("k", 2, 32, (y, 1))
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_a_checked_launch_can_be_interrupted():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(sim.__path__[0]))),
    )
    try:
        assert process.stdout.readline() == "running\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "stopped\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
