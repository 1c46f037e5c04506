"""Barriers, warp-level collectives, fences and hints, in hand-written PTX, defined in Python."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from test_sim_memory_instructions import launch, sim

LANE = 0x9E3779B1  # a multiplier that gives every lane another word
WORDS = [(k * LANE + 5) % 2**32 for k in range(32)]


def run(codes, threads=32, declared=""):
    """The value of d in each thread after each piece of code, all in one kernel.

    In the code, x is the thread's word, t its number, and p is true where t is odd. For a single
    piece of code, the result is its row alone.
    """
    pieces = [codes] if isinstance(codes, str) else list(codes)
    y, x = sim.zeros((len(pieces), threads), np.uint32), np.resize(np.uint32(WORDS), threads)
    lines = [
        f""".reg .b32 t, x, d, e; .reg .b64 i, o; .reg .pred p, q; {declared}
        mov.u32 t, %tid.x; mul.wide.u32 o, t, 4; add.u64 i, o, r1; add.u64 o, o, r0;"""
    ]
    for code in pieces:
        lines.append(
            f"""{{ ld.global.u32 x, [i]; mov.u32 d, 0; and.b32 e, t, 1; setp.eq.u32 p, e, 1;
            {code}
            st.global.u32 [o], d; add.u64 o, o, {4 * threads}; }}"""
        )
    launch("\n".join(lines), y, sim.asarray(x), threads=threads)
    found = sim.asnumpy(y).tolist()
    return found[0] if isinstance(codes, str) else found


def shuffled(mode, b, c):
    """The PTX ISA's rule: (value, whether the source lane is in range) for each lane."""
    found = []
    for lane in range(32):
        mask, clamp = c >> 8 & 31, c & 31
        low, high = lane & mask, lane & mask | clamp & ~mask & 31
        source, inside = {
            "up": (lane - b, lane - b >= high),
            "down": (lane + b, lane + b <= high),
            "bfly": (lane ^ b, lane ^ b <= high),
            "idx": (low | b & ~mask & 31, (low | b & ~mask & 31) <= high),
        }[mode]
        found.append((WORDS[source if inside else lane], inside))
    return found


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode):
    codes, want = [], []
    for b, segment in product((0, 1, 5, 31), (32, 16, 8, 2)):
        c = 32 - segment << 8 | (0 if mode == "up" else 31)
        codes.append(f"shfl.sync.{mode}.b32 d, x, {b}, {c}, -1;")
        codes.append(f"shfl.sync.{mode}.b32 d|q, x, {b}, {c}, -1; selp.u32 d, 1, 0, q;")
        want += [list(column) for column in zip(*shuffled(mode, b, c), strict=True)]
    assert run(codes) == want


def rows(cases, threads):
    """Each piece of code must give the same word in every thread."""
    assert run([code for code, _ in cases], threads) == [[want] * threads for _, want in cases]


VOTES = [
    ("vote.sync.ballot.b32 d, p, -1;", 0xAAAAAAAA),
    ("vote.sync.ballot.b32 d, !p, -1;", 0x55555555),
    ("vote.sync.any.pred q, p, -1; selp.u32 d, 1, 0, q;", 1),
    ("vote.sync.all.pred q, p, -1; selp.u32 d, 1, 0, q;", 0),
    ("vote.sync.uni.pred q, p, -1; selp.u32 d, 1, 0, q;", 0),
    ("setp.lt.u32 p, t, 99; vote.sync.all.pred q, p, -1; selp.u32 d, 1, 0, q;", 1),
    ("setp.gt.u32 p, t, 99; vote.sync.uni.pred q, p, -1; selp.u32 d, 1, 0, q;", 1),
    ("setp.gt.u32 p, t, 99; vote.sync.any.pred q, p, -1; selp.u32 d, 1, 0, q;", 0),
    ("activemask.b32 d;", 0xFFFFFFFF),
]


def test_votes():
    rows(VOTES, 32)


def test_the_elected_lane():
    code = ".reg .pred l; elect.sync d|l, -1; selp.u32 e, 100, 0, l; add.u32 d, d, e;"
    assert run(code) == [100] + [0] * 31


def test_half_a_warp_votes_alone():
    got = run(
        """@!p bra EVEN; vote.sync.ballot.b32 d, p, 0xAAAAAAAA; activemask.b32 e;
        and.b32 d, d, e; bra END; EVEN: vote.sync.ballot.b32 d, p, 0x55555555; END:"""
    )
    assert got == [0, 0xAAAAAAAA] * 16


@pytest.mark.parametrize("width", [32, 64])
def test_matches(width):
    """The lanes with the same value; for match.all only where all lanes have it."""
    move = "mov.b32 e, d;" if width == 32 else "mov.b64 w, {d, d};"
    source = "e" if width == 32 else "w"
    for divisor in (1, 3, 32):
        values = [k // divisor for k in range(32)]
        masks = [sum(1 << j for j in range(32) if values[j] == v) for v in values]
        make = f".reg .b64 w; div.u32 d, t, {divisor}; {move}"
        assert run(f"{make} match.any.sync.b{width} d, {source}, -1;") == masks
        got = run(f"{make} match.all.sync.b{width} d|q, {source}, -1; selp.u32 e, 7, 0, q;"
                  " xor.b32 d, d, e;")  # fmt: skip
        assert got == ([0xFFFFFFFF ^ 7] * 32 if divisor == 32 else [0] * 32)


def _signed(v):
    return v - 2**32 if v >> 31 else v


REDUX = [
    ("add.u32", sum(WORDS)),
    ("add.s32", sum(WORDS)),
    ("min.u32", min(WORDS)),
    ("min.s32", min(map(_signed, WORDS))),
    ("max.u32", max(WORDS)),
    ("max.s32", max(map(_signed, WORDS))),
    ("and.b32", int(np.bitwise_and.reduce(np.uint32(WORDS) | 1))),
    ("or.b32", int(np.bitwise_or.reduce(np.uint32(WORDS)))),
    ("xor.b32", int(np.bitwise_xor.reduce(np.uint32(WORDS)))),
]


def test_reductions_over_a_warp():
    cases = []
    for form, want in REDUX:
        make = "or.b32 x, x, 1;" if form.startswith("and") else ""
        cases.append((f"{make} redux.sync.{form} d, x, -1;", want % 2**32))
    rows(cases, 32)


# Each thread writes its word, waits, and reads another warp's.
EXCHANGE = """mov.u32 e, place; mul.lo.u32 d, t, 4; add.u32 e, e, d; st.shared.u32 [e], x;
{} xor.b32 d, d, 128; mov.u32 e, place; add.u32 e, e, d; ld.shared.u32 d, [e];"""
PLACE = ".shared .align 4 .b8 place[256];"


@pytest.mark.parametrize(
    "wait",
    [
        "bar.sync 0;",
        "bar.sync 3, 64;",
        "bar.cta.sync 0;",
        "barrier.sync 1;",
        "barrier.sync.aligned 2, 64;",
        "barrier.cta.sync 0;",
        "barrier.cta.sync.aligned 0;",
        "bar.red.popc.u32 x, 0, p;",
        "barrier.cta.red.popc.aligned.u32 x, 0, 64, p;",
    ],
)
def test_barriers(wait):
    want = np.resize(np.uint32(WORDS), 64)
    assert run(EXCHANGE.format(wait), 64, PLACE) == np.roll(want, 32).tolist()


BARRIERS = [
    ("bar.red.popc.u32 d, 0, p;", 32),
    ("bar.red.popc.u32 d, 0, !p;", 32),
    ("bar.red.and.pred q, 0, p; selp.u32 d, 1, 0, q;", 0),
    ("bar.red.or.pred q, 0, p; selp.u32 d, 1, 0, q;", 1),
    ("setp.lt.u32 p, t, 64; bar.red.and.pred q, 0, 64, p; selp.u32 d, 1, 0, q;", 1),
    ("setp.gt.u32 p, t, 64; barrier.red.or.pred q, 0, p; selp.u32 d, 1, 0, q;", 0),
]


def test_barriers_that_reduce():
    rows(BARRIERS, 64)


def test_arriving_without_waiting():
    """The first warp writes and arrives, the second waits and reads."""
    code = """mov.u32 e, place; and.b32 d, t, 31; mul.lo.u32 d, d, 4; add.u32 e, e, d;
    setp.ge.u32 q, t, 32; @q bra READ; st.shared.u32 [e], x; {} mov.u32 d, 0; bra END;
    READ: {} ld.shared.u32 d, [e]; END:"""
    for arrive, sync in (
        ("bar.arrive 1, 64;", "bar.sync 1, 64;"),
        ("barrier.arrive 5, 64;", "barrier.sync 5, 64;"),
        ("barrier.cta.arrive.aligned 5, 64;", "barrier.cta.sync.aligned 5, 64;"),
    ):
        assert run(code.format(arrive, sync), 64, PLACE) == [0] * 32 + WORDS


def test_a_barrier_of_a_warp():
    code = """mov.u32 e, place; mul.lo.u32 d, t, 4; add.u32 e, e, d; st.shared.u32 [e], x;
    bar.warp.sync -1; xor.b32 d, d, 4; mov.u32 e, place; add.u32 e, e, d; ld.shared.u32 d, [e];"""
    assert run(code, 32, PLACE) == [WORDS[k ^ 1] for k in range(32)]


SCOPES = ("cta", "gpu", "sys", "cluster")
FENCES = [
    *(f"membar.{scope};" for scope in ("cta", "gl", "sys")),
    *(f"fence.{scope};" for scope in SCOPES),
    *(f"fence.sc.{scope};" for scope in SCOPES),
    *(f"fence.acq_rel.{scope};" for scope in SCOPES),
]
HINTS = ["nanosleep.u32 20;", "prefetch.global.L1 [i];", "prefetch.global.L2 [i];",
         "prefetchu.L1 [i];"]  # fmt: skip


def test_fences_and_hints_change_no_value():
    codes = [f"{code} mov.u32 d, x;" for code in FENCES + HINTS]
    assert run(codes) == [WORDS] * len(codes)


def test_loads_that_are_uniform_or_hinted():
    forms = (
        *("ldu.global.u32", "ld.global.nc.u32", "ld.global.ca.u32", "ld.volatile.global.u32"),
        *("ld.relaxed.gpu.global.u32", "ld.acquire.sys.global.u32", "ld.weak.global.u32"),
        "ld.global.L1::evict_last.u32",
    )
    assert run([f"{form} d, [i];" for form in forms]) == [WORDS] * len(forms)


@pytest.mark.parametrize("code", ["trap;", "brkpt;"])
def test_traps_stop_the_kernel(code):
    with pytest.raises(sim.KernelError, match="executed a trap"):
        run(f"setp.eq.u32 q, t, 7; @q {code}")
