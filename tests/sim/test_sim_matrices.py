"""ldmatrix, stmatrix and mma, against the fragment tables of the PTX ISA, stated here once more."""

from __future__ import annotations

import numpy as np
import pytest
from test_sim_memory_instructions import HEAD, launch, sim

# "Matrix Fragments for mma.m16n8k8 ..., mma.m16n8k16 ...": (row, column) of element i of a thread's
# fragment; g = %laneid >> 2, t = %laneid % 4. c and d are the same for all.
TABLES = {
    ("m16n8k8", "tf32"): (
        lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
        lambda g, t, i: (t if i == 0 else t + 4, g),
    ),
    ("m16n8k8", "f16"): (
        lambda g, t, i: (g if i < 2 else g + 8, t * 2 + (i & 1)),
        lambda g, t, i: (t * 2 + i, g),
    ),
    ("m16n8k16", "f16"): (
        lambda g, t, i: (
            g if 0 <= i < 2 or 4 <= i < 6 else g + 8,
            t * 2 + (i & 1) if i < 4 else t * 2 + (i & 1) + 8,
        ),
        lambda g, t, i: (t * 2 + (i & 1) if i < 2 else t * 2 + (i & 1) + 8, g),
    ),
}
for depth in ("m16n8k8", "m16n8k16"):
    TABLES[depth, "bf16"] = TABLES[depth, "f16"]


def of_c(g, t, i):
    return g if i < 2 else g + 8, t * 2 + (i & 1)


def bits(values, type_):
    """Numbers that the type holds, as its bits."""
    if type_ == "f16":
        return np.asarray(values, np.float16).view(np.uint16)
    wide = np.asarray(values, np.float32).view(np.uint32)
    return (wide >> 16).astype(np.uint16) if type_ == "bf16" else wide


def fragment(matrix, table, count):
    """The registers of 32 lanes: (32, words)."""
    lanes = [[matrix[table(k >> 2, k % 4, i)] for i in range(count)] for k in range(32)]
    return np.ascontiguousarray(lanes).view(np.uint32)


def multiplied(shape, type_, a, b, c):
    """d as mma gives it, of float32 bits of c and the formats' bits of a and b."""
    of_a, of_b = TABLES[shape, type_]
    elements = a.shape[1] // 2
    parts = fragment(a, of_a, elements), fragment(b, of_b, elements // 2), fragment(c, of_c, 4)
    na, nb = parts[0].shape[1], parts[1].shape[1]
    d = sim.zeros((32, 4), np.float32)
    counts = zip("abcd", (na, nb, 4, 4), strict=True)
    names = [f"{letter}_{k}" for letter, count in counts for k in range(count)]
    vectors = {n: "{" + ", ".join(x for x in names if x[0] == n) + "}" for n in "abcd"}
    loads = ["mov.u32 t, %tid.x;"]
    for n, (letter, count) in enumerate((("a", na), ("b", nb), ("c", 4))):
        loads.append(f"mul.wide.u32 o, t, {4 * count}; add.u64 o, o, r{n};")
        kind = "f32" if letter == "c" else "b32"
        loads += [f"ld.global.{kind} {letter}_{k}, [o+{4 * k}];" for k in range(count)]
    body = f""".reg .b32 t, {", ".join(n for n in names if n[0] in "ab")}; .reg .b64 o;
    .reg .f32 {", ".join(n for n in names if n[0] in "cd")};
    {" ".join(loads)}
    mma.sync.aligned.{shape}.row.col.f32.{type_}.{type_}.f32
        {vectors["d"]}, {vectors["a"]}, {vectors["b"]}, {vectors["c"]};
    mul.wide.u32 o, t, 16; add.u64 o, o, r3; st.global.v4.f32 [o], {vectors["d"]};"""
    launch(body, *map(sim.asarray, parts), d, threads=32)
    found = np.full((16, 8), np.nan, np.float32)
    for lane, row in enumerate(sim.asnumpy(d)):
        for i in range(4):
            found[of_c(lane >> 2, lane % 4, i)] = row[i]
    return found


@pytest.mark.parametrize(("shape", "type_"), TABLES)
def test_products(shape, type_):
    """Whole numbers, whose products and sums are exact whatever the order."""
    depth = int(shape.partition("k")[2])
    random = np.random.default_rng(depth)
    a, b = random.integers(-9, 9, (16, depth)), random.integers(-9, 9, (depth, 8))
    c = random.integers(-99, 99, (16, 8)).astype(np.float32)
    found = multiplied(shape, type_, bits(a, type_), bits(b, type_), c.view(np.uint32))
    assert np.array_equal(found, a @ b + c)


@pytest.mark.parametrize(("shape", "type_"), TABLES)
def test_sums_are_close_to_those_of_float64(shape, type_):
    """Within a unit in the last place of float32 a term; subnormals count, infinities stay."""
    depth = int(shape.partition("k")[2])
    random = np.random.default_rng(7)
    a = bits(random.standard_normal((16, depth)), type_)
    b = bits(random.standard_normal((depth, 8)), type_)
    c = random.standard_normal((16, 8)).astype(np.float32)
    a[3, 1], a[4] = bits(np.inf, type_), 0
    a[4, 0], b[0, :], c[4] = 1, bits(2.0, type_), 0  # a subnormal, but of TF32, which drops it
    exact = [np.float64(value(m, type_)) for m in (a, b)]
    with np.errstate(all="ignore"):
        want = exact[0] @ exact[1] + c
        bound = (abs(exact[0]) @ abs(exact[1]) + abs(c)) * (depth + 1) * 2.0**-23
    found = multiplied(shape, type_, a, b, c.view(np.uint32))
    finite = np.isfinite(want)
    assert not finite[3].any()
    assert finite[[0, 1, 2, 4]].all()
    assert np.array_equal(found[3], want[3], equal_nan=True)
    error = abs(found[finite] - want[finite])
    assert not (error > bound[finite]).any()
    assert type_ == "tf32" or found[4].all()


def value(words, type_):
    """What the bits stand for; TF32 is a float32 without its last 13 bits."""
    if type_ == "f16":
        return words.view(np.float16)
    if type_ == "bf16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    return (words & np.uint32(0xFFFFE000)).view(np.float32)


def test_tf32_operands_are_cut_not_rounded():
    a, b = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32)
    a[:, 0], b[0] = 1 + 2**-10 + 2**-11 + 2**-12, 1 + 2**-11
    found = multiplied("m16n8k8", "tf32", a.view("u4"), b.view("u4"), np.zeros((16, 8), "u4"))
    assert (found == 1 + 2.0**-10).all()


def rows_of(count):
    """Memory of `count` matrices of 8x8 halves, rows of 16 bytes, and a row order."""
    random = np.random.default_rng(count)
    halves = random.integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    return halves, random.permutation(8 * count).astype(np.uint32)


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("space", ["shared", "shared::cta"])
def test_ldmatrix(count, trans, space):
    """Thread l gets halves 2*(l%4) and 2*(l%4)+1 of row l/4, of column l/4 with .trans; thread
    8m+r gives the address of row r of matrix m, the others any.
    """
    halves, order = rows_of(count)
    memory = halves.reshape(-1, 8)[order]  # row order[k] lies at k
    place = np.full(32, 2**20, np.uint32)
    place[: 8 * count] = np.argsort(order) * 16
    y = sim.zeros((32, count), np.uint32)
    names = ", ".join(f"d{k}" for k in range(count))
    body = f""".shared .align 16 .b8 s[{128 * count}]; .reg .b32 t, a, v, {names}; .reg .b64 o;
    .reg .pred p; mov.u32 t, %tid.x; mov.u32 a, s;
    {fill(32 * count)}
    bar.warp.sync -1;
    mul.wide.u32 o, t, 4; add.u64 o, o, r1; ld.global.u32 v, [o]; add.u32 a, a, v;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.{space}.b16 {{{names}}}, [a];
    mul.wide.u32 o, t, {4 * count}; add.u64 o, o, r2;
    {"".join(f"st.global.u32 [o+{4 * k}], d{k};" for k in range(count))}"""
    launch(body, sim.asarray(memory.view(np.uint32)), sim.asarray(place), y, threads=32)
    assert np.array_equal(sim.asnumpy(y), held(halves, trans))


def held(halves, trans):
    """(32, count) words."""
    source = halves.transpose(0, 2, 1) if trans else halves
    found = np.zeros((32, len(halves), 2), np.uint16)
    for lane in range(32):
        found[lane] = source[:, lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
    return found.view(np.uint32)[..., 0]


def fill(words):
    """Thread t copies every 32nd word of r0 to s."""
    each = "mul.wide.u32 o, t, 4; add.u64 o, o, r0; mad.lo.u32 v, t, 4, a;"
    return each + "".join(
        f"ld.global.u32 d0, [o+{128 * k}]; st.shared.u32 [v+{128 * k}], d0;"
        for k in range(words // 32)
    )


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count, trans):
    halves, order = rows_of(count)
    place = np.full(32, 2**20, np.uint32)
    place[: 8 * count] = np.argsort(order) * 16
    y = sim.zeros((8 * count, 4), np.uint32)
    names = ", ".join(f"d{k}" for k in range(count))
    body = f""".shared .align 16 .b8 s[{128 * count}]; .reg .b32 t, a, v, {names}; .reg .b64 o;
    mov.u32 t, %tid.x; mov.u32 a, s; mul.wide.u32 o, t, {4 * count}; add.u64 o, o, r0;
    {"".join(f"ld.global.u32 d{k}, [o+{4 * k}];" for k in range(count))}
    mul.wide.u32 o, t, 4; add.u64 o, o, r1; ld.global.u32 v, [o]; add.u32 a, a, v;
    stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [a], {{{names}}};
    bar.warp.sync -1; mul.wide.u32 o, t, 4; add.u64 o, o, r2; mov.u32 a, s; mad.lo.u32 a, t, 4, a;
    {"".join(f"ld.shared.u32 v, [a+{128 * k}]; st.global.u32 [o+{128 * k}], v;"
             for k in range(count))}"""  # fmt: skip
    launch(body, sim.asarray(held(halves, trans)), sim.asarray(place), y, threads=32)
    assert np.array_equal(sim.asnumpy(y).view(np.uint16), halves.reshape(-1, 8)[order])


LDMATRIX = """.shared .align 16 .b8 s[256]; .reg .b32 t, a, d; .reg .pred p; mov.u32 t, %tid.x;
mov.u32 a, s; mad.lo.u32 d, t, 8, a; st.shared.v2.u32 [d], {t, t}; bar.sync 0;"""


@pytest.mark.parametrize(
    ("code", "threads", "kind"),
    [
        ("mad.lo.u32 a, t, 16, a; add.u32 a, a, 8;", 32, "misaligned"),
        ("mad.lo.u32 a, t, 16, a; add.u32 a, a, 160;", 32, "bounds_shared"),
        ("setp.eq.u32 p, t, 5; @p ret;", 32, "matrix"),
        ("setp.ge.u32 p, t, 16; @p bra A; bra B; A: mov.u32 d, 1;"
         "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {d}, [a]; B:", 32, "matrix"),
        ("", 16, "matrix"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_an_error(code, threads, kind):
    text = f"{HEAD}.visible .entry k() {{ {LDMATRIX} {code} "
    text += "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {d}, [a]; ret; }"
    with pytest.raises(sim.KernelError) as error:
        sim.Module.from_ptx(text, check=True).launch("k", 1, threads, ())
    assert error.value.kind == kind


def test_a_matrix_needs_the_barrier_after_other_lanes_stores():
    text = f"{HEAD}.visible .entry k() {{ {LDMATRIX} "
    text += "mad.lo.u32 a, t, 16, a; setp.ge.u32 p, t, 8; @p mov.u32 a, s;"
    text += "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {d}, [a]; ret; }"
    sim.Module.from_ptx(text, check=True).launch("k", 1, 32, ())
    with pytest.raises(sim.KernelError) as error:
        sim.Module.from_ptx(text.replace("bar.sync 0;", ""), check=True).launch("k", 1, 32, ())
    assert error.value.kind in ("race_shared", "uninitialised")


@pytest.mark.parametrize(
    "code",
    [
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {f,f,f,f}, {t,t}, {t}, {f,f,f,f};",
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {t,t}, {t,t,t,t}, {t,t}, {t,t};",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b6x16_p32 {t}, [t];",
    ],
)
def test_other_shapes_are_refused(code):
    text = f"{HEAD}.visible .entry k() {{ .reg .b32 t; .reg .f32 f; {code} ret; }}"
    with pytest.raises(sim.UnsupportedError, match="not modelled"):
        sim.Module.from_ptx(text)
