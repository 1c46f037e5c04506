"""What the compiler says of kernels, and the arithmetic of occupancy and rooflines."""

from __future__ import annotations

import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

from gpuconv.sim import facts  # noqa: E402

try:
    facts.tool("cuobjdump"), facts.tool("nvdisasm")
except sim.SimError as missing:
    pytest.skip(str(missing), allow_module_level=True)

SOURCE = """
extern "C" __global__ void chain(float* y, int n) {
    float a = y[0], b = y[1];
    #pragma unroll 1
    for (int i = 0; i < n; ++i) {
        #pragma unroll
        for (int j = 0; j < 16; ++j) a = fmaf(a, b, 1.0f);
    }
    y[2] = a;
}
extern "C" __global__ void tile(float* y) {
    __shared__ float t[1024];
    t[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = t[1023 - threadIdx.x];
}
extern "C" __global__ void nested(float* y, int n) {
    __shared__ float t[1024];
    float a = y[0];
    #pragma unroll 1
    for (int k = 0; k < n; ++k) {
        t[threadIdx.x] = y[threadIdx.x + k];
        __syncthreads();
        #pragma unroll 1
        for (int i = 0; i < n; ++i) {
            #pragma unroll
            for (int j = 0; j < 16; ++j) a = fmaf(a, t[j], 1.0f);
        }
        __syncthreads();
    }
    y[0] = a;
}
extern "C" __global__ void spills(float* y, int n) {
    float a[64];
    for (int i = 0; i < 64; ++i) a[i] = y[i];
    for (int i = 0; i < n; ++i) a[i * 7 % 64] += a[i % 64];
    for (int i = 0; i < 64; ++i) y[i] = a[i];
}
"""


def test_facts_of_kernels():
    found = facts.facts(sim.to_cubin(SOURCE, arch="sm_90a"), "sm_90a")
    assert set(found) == {"chain", "tile", "nested", "spills"}
    assert found["chain"].loop["FFMA"] == 16
    assert found["chain"].instructions > sum(found["chain"].loop.values())
    assert found["tile"].shared == 4096  # the cubin says 5120: CUDA takes 1024 for itself
    assert not found["tile"].loop
    assert found["nested"].loop["FFMA"] == 16  # the inner loop, without the barriers around it
    assert "BAR" not in found["nested"].loop
    assert (found["chain"].spills, found["tile"].spills) == (0, 0)
    assert found["spills"].spills > 0
    assert found["spills"].stack >= 256
    assert 8 <= found["tile"].registers <= 32


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "blocks", "limiter"),
    [  # cases of NVIDIA's occupancy table
        ("sm_80", 32, 0, 256, 8, "threads"),
        ("sm_80", 128, 0, 256, 2, "registers"),  # 4096 a warp
        ("sm_80", 129, 0, 256, 1, "registers"),  # 4352: 15 warps, 12 in fours
        ("sm_86", 40, 0, 256, 6, "threads"),  # registers allow as many
        ("sm_86", 41, 0, 256, 5, "registers"),
        ("sm_89", 32, 32 << 10, 256, 3, "shared memory"),  # 33 KB of 100
        ("sm_90a", 16, 0, 32, 32, "blocks"),
        ("sm_75", 32, 32 << 10, 256, 2, "shared memory"),  # 32 KB of 64
        ("sm_80", 32, 0, 33, 32, "threads"),  # two warps each
    ],
)
def test_occupancy(arch, registers, shared, threads, blocks, limiter):
    held = facts.occupancy(arch, registers, shared, threads)
    assert held.blocks == blocks
    assert held.warps == blocks * -(-threads // 32)
    assert held.limiter == limiter


def test_rooflines():
    """The A100's data sheet: 19.5 TFLOP/s and 1555 GB/s meet at 12.5 flop for a byte."""
    assert facts.roofline("a100", 19_500_000, 0) == (pytest.approx(1e-6), "arithmetic")
    assert facts.roofline("a100", 1, 1_555_000_000) == (pytest.approx(1e-3), "memory")
    with pytest.raises(ValueError, match="no card 'abacus', there are: t4, a100"):
        facts.roofline("abacus", 1, 1)


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(facts.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(facts.shutil, "which", lambda name: None)
    with pytest.raises(sim.SimError, match="pip install nvidia-cuda-nvdisasm"):
        facts.disassembly(b"")
