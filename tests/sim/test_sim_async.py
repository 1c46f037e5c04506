"""cp.async: what it copies, when others may see it, and what is wrong with its use."""

from __future__ import annotations

import numpy as np
import pytest
from test_sim_memory_instructions import HEAD, launch, sim

FORMS = [
    (f"{kind}.{space}.global{hint}", size)
    for kind, sizes in (("ca", (4, 8, 16)), ("cg", (16,)))
    for size in sizes
    for space, hint in (("shared", ""), ("shared::cta", ""), ("shared", ".L2::128B"))
]


@pytest.mark.parametrize(("form", "size"), FORMS)
def test_copies_and_fills_with_zeros(form, size):
    """Thread t reads the first t bytes of its `size`, at most all; the others become zeros."""
    x = np.random.default_rng(size).integers(1, 256, (32, size)).astype(np.uint8)
    y = sim.zeros((32, size), np.uint8)
    body = f""".shared .align 16 .b8 s[{32 * size}]; .reg .b32 t, a, v; .reg .b64 i, o;
    mov.u32 t, %tid.x; mov.u32 a, s; mad.lo.u32 a, t, {size}, a; mul.wide.u32 o, t, {size};
    add.u64 i, o, r0; add.u64 o, o, r1; min.u32 t, t, {size};
    cp.async.{form} [a], [i], {size}, t;
    cp.async.commit_group; cp.async.wait_group 0;
    {"".join(f"ld.shared.u32 v, [a+{k}]; st.global.u32 [o+{k}], v;" for k in range(0, size, 4))}"""
    launch(body, sim.asarray(x), y, threads=32)
    read = np.minimum(np.arange(32), size)[:, None] > np.arange(size)
    assert np.array_equal(sim.asnumpy(y), np.where(read, x, 0))


def test_ignores_its_source_where_a_predicate_says_so():
    x, y = sim.asarray(np.full(4, 7, np.uint32)), sim.zeros(8, np.uint32)
    body = """.shared .align 16 .b8 s[32]; .reg .b32 a, v; .reg .pred p; .reg .b64 far;
    mov.u32 a, s; setp.eq.u32 p, a, a; add.u64 far, r0, 1048576;
    cp.async.cg.shared.global [a], [r0], 16; cp.async.cg.shared.global [a+16], [far], 16, p;
    cp.async.wait_all;"""
    body += "".join(
        f"ld.shared.u32 v, [a+{k}]; st.global.u32 [r1+{k}], v;" for k in range(0, 32, 4)
    )
    launch(body, x, y)
    assert sim.asnumpy(y).tolist() == [7] * 4 + [0] * 4


# Stage k brings word k; after each wait the kernel adds up the words that must have come.
STAGES = """.shared .align 16 .b8 s[64]; .reg .b32 t, a, v, sum; .reg .b64 at;
mov.u32 t, %tid.x; mad.lo.u32 t, t, 16, 0; mov.u32 a, s; mov.u32 sum, 0;
cp.async.ca.shared.global [a], [r0], 4; cp.async.commit_group;
cp.async.ca.shared.global [a+4], [r0+4], 4; cp.async.ca.shared.global [a+8], [r0+8], 4;
cp.async.commit_group;
cp.async.commit_group;
cp.async.ca.shared.global [a+12], [r0+12], 4; cp.async.commit_group;
cp.async.wait_group {groups};
ld.shared.u32 v, [a+{word}]; st.global.u32 [r1], v;"""
# after wait_group n: the words that have come
ARRIVED = {0: (0, 1, 2, 3), 1: (0, 1, 2), 2: (0, 1, 2), 3: (0,), 4: ()}


@pytest.mark.parametrize("groups", ARRIVED)
@pytest.mark.parametrize("word", range(4))
def test_waits_for_all_but_the_last_groups(groups, word):
    x, y = np.arange(10, 14, dtype=np.uint32), sim.zeros(1, np.uint32)
    text = f"{HEAD}.visible .entry k(.param .u64 a0, .param .u64 a1) {{ .reg .b64 r0, r1;"
    text += "ld.param.u64 r0, [a0]; ld.param.u64 r1, [a1];"
    text += STAGES.format(groups=groups, word=4 * word) + " ret; }"
    arguments = sim.asarray(x), y
    if word in ARRIVED[groups]:
        sim.Module.from_ptx(text).launch("k", 1, 1, arguments)
        assert sim.asnumpy(y)[0] == x[word]
        sim.Module.from_ptx(text, check=True).launch("k", 1, 1, arguments)
        return
    with pytest.raises(sim.KernelError, match="a copy is on its way") as error:
        sim.Module.from_ptx(text, check=True).launch("k", 1, 1, arguments)
    assert error.value.kind == "in_flight"


def test_without_checks_too_a_copy_comes_at_its_wait():
    x, y = sim.asarray(np.full(1, 5, np.uint32)), sim.zeros(2, np.uint32)
    body = """.shared .align 16 .b8 s[16]; .reg .b32 a, v; mov.u32 a, s; st.shared.u32 [a], 1;
    cp.async.ca.shared.global [a], [r0], 4; ld.shared.u32 v, [a]; st.global.u32 [r1], v;
    cp.async.wait_all; ld.shared.u32 v, [a]; st.global.u32 [r1+4], v;"""
    launch(body, x, y, check=False)
    assert sim.asnumpy(y).tolist() == [1, 5]


def test_more_copies_than_are_kept_on_their_way():
    x, y = np.arange(1000, dtype=np.uint32), sim.zeros(1000, np.uint32)
    body = ".shared .align 16 .b8 s[4000]; .reg .b32 a, v, n; .reg .b64 i, o; .reg .pred p;"
    body += """mov.u32 a, s; mov.u32 n, 0; mov.u64 i, r0; mov.u64 o, r1;
    L: cp.async.ca.shared.global [a], [i], 4; add.u32 a, a, 4; add.u64 i, i, 4; add.u32 n, n, 1;
    setp.lt.u32 p, n, 1000; @p bra L; cp.async.wait_all; mov.u32 a, s; mov.u32 n, 0;
    M: ld.shared.u32 v, [a]; st.global.u32 [o], v; add.u32 a, a, 4; add.u64 o, o, 4;
    add.u32 n, n, 1; setp.lt.u32 p, n, 1000; @p bra M;"""
    launch(body, sim.asarray(x), y)
    assert np.array_equal(sim.asnumpy(y), x)


KERNEL = """
__device__ void copy(void* to, const void* from, int size) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
        :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(size) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ void wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
extern "C" __global__ void k(float* y, const float* x) {
    __shared__ float s[2][64];
    const int t = threadIdx.x;
    copy(&s[0][t], x + t, 4); commit();
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
        FIRST copy(&s[~i & 1][t], x + 64 * (i + 1) + t, i < 3 ? 4 : 0); commit();
        WAIT SECOND sum += s[i & 1][63 - t]; THIRD
    }
    y[t] = sum;
}"""
RIGHT = {"FIRST": "", "WAIT": "wait<1>();", "SECOND": "__syncthreads();",
         "THIRD": "__syncthreads();"}  # fmt: skip
BROKEN = {
    "no wait": ({"WAIT": ""}, {"in_flight"}),
    "a wait that leaves one group too many": ({"WAIT": "wait<2>();"}, {"in_flight"}),
    "no barrier after the wait": ({"SECOND": ""}, {"in_flight", "race_shared", "uninitialised"}),
    "the wait after the barrier": (
        {"WAIT": "", "SECOND": "__syncthreads(); wait<1>();"},
        {"in_flight", "race_shared"},
    ),
    "no barrier before the buffer is filled again": ({"THIRD": ""}, {"race_shared", "in_flight"}),
}


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_a_pipeline_of_copies(order):
    x, y = np.random.default_rng(1).standard_normal(256).astype(np.float32), sim.zeros(64)
    for check in (False, True):
        module = sim.Module(filled(RIGHT), check=check)
        module.launch("k", 1, 64, (y, sim.asarray(x)), order=order)
        a, b, c, d = x.reshape(4, 64)[:, ::-1]
        assert np.array_equal(sim.asnumpy(y), a + b + c + d)


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pipeline_is_found(name, order):
    change, kinds = BROKEN[name]
    with pytest.raises(sim.KernelError) as error:
        sim.Module(filled({**RIGHT, **change}), check=True).launch(
            "k", 1, 64, (sim.zeros(64), sim.zeros(256)), order=order
        )
    assert error.value.kind in kinds


def filled(words):
    text = KERNEL
    for word, code in words.items():
        text = text.replace(word, code)
    return text


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("cp.async.ca.shared.global [a+4], [r0], 8;", "misaligned"),
        ("cp.async.cg.shared.global [a], [r0+8], 16;", "misaligned"),
        ("cp.async.cg.shared.global [a+64], [r0], 16;", "bounds_shared"),
        ("cp.async.cg.shared.global [a], [r0+64], 16;", "bounds_global"),
        ("cp.async.ca.shared.global [a], [r0+56], 16, 12;", "misaligned"),
        ("cp.async.cg.shared.global [a], [r1], 16;", "uninitialised"),
        ("cp.async.cg.shared.global [a], [r0], 16; st.shared.u32 [a], 1;", "in_flight"),
        ("cp.async.cg.shared.global [a], [r0], 16; cp.async.ca.shared.global [a+8], [r0], 4;",
         "in_flight"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_an_error(code, kind):
    text = f"""{HEAD}.visible .entry k(.param .u64 a0, .param .u64 a1) {{ .reg .b64 r0, r1;
    .reg .b32 a; .shared .align 16 .b8 s[64]; ld.param.u64 r0, [a0]; ld.param.u64 r1, [a1];
    mov.u32 a, s; {code} cp.async.wait_all; ret; }}"""
    with pytest.raises(sim.KernelError) as error:
        sim.Module.from_ptx(text, check=True).launch("k", 1, 1, (sim.zeros(16), sim.empty(16)))
    assert error.value.kind == kind
