"""Loads, stores, address spaces, atomics and control flow, in hand-written PTX."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"
INTEGERS = {t: np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")}


def ptx_type(dtype: np.dtype, letter: str = "") -> str:
    return f"{letter or {'u': 'u', 'i': 's', 'f': 'f'}[dtype.kind]}{dtype.itemsize * 8}"


def launch(body: str, *args, before="", threads=1, check=True, shared=0):
    """Run `body`, with the 64-bit arguments in registers r0, r1, ..., without and with checks."""
    names = ", ".join(f".param .u64 a{k}" for k in range(len(args)))
    loads = "".join(f".reg .b64 r{k}; ld.param.u64 r{k}, [a{k}];\n" for k in range(len(args)))
    text = f"{HEAD}{before}\n.visible .entry k({names}) {{\n{loads}{body}\nret;\n}}"
    first = [sim.asnumpy(a) for a in args]
    sim.Module.from_ptx(text).launch("k", 1, threads, args, shared=shared)
    if check:
        again = [sim.asarray(a) for a in first]
        sim.Module.from_ptx(text, check=True).launch("k", 1, threads, again, shared=shared)
        for mine, other in zip(args, again, strict=True):
            assert sim.asnumpy(mine).tobytes() == sim.asnumpy(other).tobytes()


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("space", ["global", "shared", "local", "generic"])
def test_loads_extend_and_stores_cut(name, space):
    """A load into a wider register extends by the type's sign; a store takes the low bits."""
    dtype = INTEGERS[name]
    t, width = ptx_type(dtype), dtype.itemsize
    values = np.array([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31, 2**63, 2**64 - 1])
    values = np.array([int(v) % 256**width for v in values], f"u{width}").view(dtype)
    x, y = sim.asarray(values), sim.zeros(len(values), np.int64)
    suffix = "" if space == "generic" else f".{space}"
    # thread k sends value k through 8 bytes of the space, which keep only its own width
    count = len(values)
    place = f".align 8 .b8 place[{8 * count}];"
    declared = {"generic": "shared"}.get(space, space)
    before = "" if space == "local" else f".{declared} {place}"
    body = f"""{f".local {place}" if space == "local" else ""}
    .reg .b64 v, w, at, i, o; .reg .b32 t; mov.u32 t, %tid.x; mov.u64 at, place;
    {"cvta.shared.u64 at, at;" if space == "generic" else ""}
    mul.wide.u32 o, t, 8; add.u64 at, at, o; mul.wide.u32 i, t, {width}; add.u64 i, i, r0;
    add.u64 o, o, r1; ld.global.{t} v, [i]; st{suffix}.{ptx_type(dtype, "b")} [at], v;
    ld{suffix}.{t} w, [at]; st.global.b64 [o], w;"""
    launch(body, x, y, before=before, threads=count)
    assert np.array_equal(
        sim.asnumpy(y), values.astype(np.int64 if name[0] == "i" else np.uint64).view(np.int64)
    )


@pytest.mark.parametrize(
    ("name", "lanes"),
    [(t, n) for t in ("u1", "u2", "u4", "f4", "u8", "f8") for n in (2, 4) if int(t[1]) * n <= 16],
)
def test_vectors(name, lanes):
    dtype = np.dtype(name)
    t = ptx_type(dtype)
    register = t if name[0] == "f" else f"b{max(16, dtype.itemsize * 8)}"
    x = np.arange(1, lanes + 1).astype(dtype)
    y = sim.zeros(lanes, dtype)
    names = [f"v{k}" for k in range(lanes)]
    launch(
        f".reg .{register} {', '.join(names)};"
        f"ld.global.v{lanes}.{t} {{{', '.join(names)}}}, [r0];"
        f"st.global.v{lanes}.{t} [r1], {{{', '.join(reversed(names))}}};",
        sim.asarray(x),
        y,
    )
    assert np.array_equal(sim.asnumpy(y), x[::-1])


ATOMS = {
    "add": lambda old, b, c, n: old + b,
    "min": lambda old, b, c, n: min(old, b),
    "max": lambda old, b, c, n: max(old, b),
    "exch": lambda old, b, c, n: b,
    "cas": lambda old, b, c, n: c if old == b else old,
    "and": lambda old, b, c, n: old & b,
    "or": lambda old, b, c, n: old | b,
    "xor": lambda old, b, c, n: old ^ b,
    "inc": lambda old, b, c, n: 0 if old >= b else old + 1,
    "dec": lambda old, b, c, n: b if old == 0 or old > b else old - 1,
}
WHICH = {
    "add": ("u4", "i4", "u8", "f4", "f8"),
    "min": ("u4", "i4", "u8", "i8"),
    "max": ("u4", "i4", "u8", "i8"),
    "inc": ("u4",),
    "dec": ("u4",),
    "cas": ("b2", "b4", "b8"),
}
# What the PTX manual allows (section 9.7.13, atom; red has the same but for exch and cas).
LEGAL = {
    "add": ("u32", "s32", "u64", "f32", "f64", "noftz.f16", "noftz.f16x2", "noftz.bf16"),
    **dict.fromkeys(("min", "max"), ("u32", "s32", "u64", "s64")),
    **dict.fromkeys(("and", "or", "xor"), ("b32", "b64")),
    **dict.fromkeys(("inc", "dec"), ("u32",)),
    "exch": ("b32", "b64", "b128"),
    "cas": ("b16", "b32", "b64", "b128"),
}


def atom_type(name: str) -> str:
    return name[0].replace("i", "s") + str(int(name[1]) * 8)


def test_every_atomic_that_is_modelled_is_tested():
    taken, tested = set(), set()
    for op, types in LEGAL.items():
        tested |= {(op, atom_type(name)) for name in WHICH.get(op, ("b4", "b8"))}
        for t in types:
            width = {"f16": 16, "bf16": 16, "f16x2": 32}.get(t.split(".")[-1]) or int(t[1:])
            third = ", v" if op == "cas" else ""
            text = f"{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b{width} v; .reg .b64 a;"
            text += f"ld.param.u64 a, [p]; atom.global.{op}.{t} v, [a], v{third}; ret; }}"
            with contextlib.suppress(sim.UnsupportedError):
                sim.Module.from_ptx(text)
                taken.add((op, t))
    assert taken == tested


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize(
    ("op", "name"), [(op, t) for op in ATOMS for t in WHICH.get(op, ("b4", "b8"))]
)
def test_atomics(op, name, space):
    """The returned and the stored value, over pairs of operands."""
    dtype = np.dtype(name.replace("b", "u"))
    t, width = atom_type(name), dtype.itemsize
    if dtype.kind == "f":
        pairs = [(1.5, 2.25), (-3.0, 3.0), (1e8, 0.5)]
    else:
        bits = width * 8
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if name[0] == "i" else (0, 2**bits - 1)
        edges = [0, 1, 5, 6, 7, high, high - 1, low, low + 1]
        pairs = [(p, q) for p in edges for q in edges]
    old = np.array([p for p, _ in pairs], dtype)
    b = np.array([q for _, q in pairs], dtype)
    want = [ATOMS[op](p, q, dtype.type(9).item(), width * 8) for p, q in pairs]
    mask = (1 << width * 8) - 1
    expected = np.array(
        want if dtype.kind == "f" else [w & mask for w in want],
        dtype if dtype.kind == "f" else f"u{width}",
    ).view(dtype)
    memory, again = sim.asarray(old), sim.asarray(old)
    returned, final, reduced = (sim.zeros(len(old), dtype) for _ in range(3))
    red = op not in ("exch", "cas")  # which red does not have
    suffix = "" if space == "generic" else f".{space}"
    register = t if dtype.kind == "f" else f"b{width * 8}"
    third = ", 9" if op == "cas" else ""
    count = len(pairs)
    places = ", ".join(f"p{k}" for k in range(6))
    lines = [f".reg .{register} v, w, q; .reg .b64 i, {places}, at; .reg .b32 t, s;"]
    lines.append(f"mov.u32 t, %tid.x; mul.wide.u32 i, t, {width}; mul.lo.u32 t, t, {width};")
    lines += [f"add.u64 p{k}, r{k}, i;" for k in range(6)]
    lines.append(f"ld.global.{t} v, [p1]; ld.global.{t} w, [p0];")
    if space == "shared":
        lines.append(f"mov.u32 s, place; add.u32 s, s, t; st.shared.{t} [s], w;")
        lines.append(f"atom.shared.{op}.{t} q, [s], v{third}; ld.shared.{t} w, [s];")
    else:
        lines.append(f"atom{suffix}.{op}.{t} q, [p0], v{third}; ld.global.{t} w, [p0];")
    lines.append(f"st.global.{t} [p2], q; st.global.{t} [p3], w;")
    if red and space == "shared":
        lines.append(f"ld.global.{t} w, [p0]; st.shared.{t} [s], w; red.shared.{op}.{t} [s], v;")
        lines.append(f"ld.shared.{t} w, [s]; st.global.{t} [p5], w;")
    elif red:
        lines.append(f"red{suffix}.{op}.{t} [p4], v; ld.global.{t} w, [p4];")
        lines.append(f"st.global.{t} [p5], w;")
    arrays = (memory, sim.asarray(b), returned, final, again, reduced)
    place = f".shared .align 8 .b8 place[{count * width}];"
    launch("\n".join(lines), *arrays, before=place, threads=count)
    assert np.array_equal(sim.asnumpy(returned), old)
    assert np.array_equal(sim.asnumpy(final), expected)
    assert not red or np.array_equal(sim.asnumpy(reduced), expected)


def test_red_leaves_what_atom_leaves():
    x = sim.asarray(np.array([5, 5], np.uint32))
    launch("red.global.add.u32 [r0], 3; red.global.max.u32 [r0+4], 9;", x, threads=8)
    assert sim.asnumpy(x).tolist() == [29, 9]


def test_address_spaces():
    y = sim.zeros(5, np.uint32)
    launch(
        """.reg .b64 s, g, back; .reg .pred p, q; .reg .b32 v;
        mov.u64 s, place; cvta.shared.u64 g, s; cvta.to.shared.u64 back, g;
        isspacep.shared p, g; isspacep.global q, g; selp.u32 v, 1, 0, p; st.global.u32 [r0], v;
        selp.u32 v, 1, 0, q; st.global.u32 [r0+4], v;
        isspacep.global q, r0; selp.u32 v, 1, 0, q; st.global.u32 [r0+8], v;
        setp.eq.u64 p, s, back; selp.u32 v, 1, 0, p; st.global.u32 [r0+12], v;
        st.u32 [g+4], 77; ld.shared.u32 v, [place+4]; st.global.u32 [r0+16], v;""",
        y,
        before=".shared .align 8 .b8 other[24]; .shared .align 8 .b8 place[8];",
    )
    assert sim.asnumpy(y).tolist() == [1, 0, 1, 1, 77]


def test_constants_and_tables_of_addresses():
    y = sim.zeros(3, np.uint32)
    launch(
        """.reg .b64 p; .reg .b32 v;
        ld.const.u32 v, [numbers+4]; st.global.u32 [r0], v;
        ld.global.u64 p, [table+8]; ld.u32 v, [p]; st.global.u32 [r0+4], v;
        ld.global.u64 p, [table]; ld.u32 v, [p+8]; st.global.u32 [r0+8], v;""",
        y,
        before=".const .align 4 .u32 numbers[3] = {10, 0x14, 30};\n"
        ".global .align 8 .u64 table[2] = {generic(numbers), generic(numbers)+4};",
    )
    assert sim.asnumpy(y).tolist() == [20, 20, 30]


def test_jump_table():
    y = sim.zeros(4, np.uint32)
    launch(
        """.reg .b32 t, v; .reg .b64 i; mov.u32 t, %tid.x;
        targets: .branchtargets A, B, A, C;
        brx.idx t, targets;
        A: mov.u32 v, 11; bra.uni END;
        B: mov.u32 v, 22; bra END;
        C: mov.u32 v, 33;
        END: mul.wide.u32 i, t, 4; add.u64 i, i, r0; st.global.u32 [i], v;""",
        y,
        threads=4,
    )
    assert sim.asnumpy(y).tolist() == [11, 22, 11, 33]


def test_guards_of_either_sign_on_any_instruction():
    y = sim.zeros(8, np.uint32)
    launch(
        """.reg .pred p; .reg .b32 t, v; .reg .b64 i; mov.u32 t, %tid.x; setp.lt.u32 p, t, 3;
        mov.u32 v, 1; @p add.u32 v, v, 10; @!p mul.lo.u32 v, v, 7;
        mul.wide.u32 i, t, 4; add.u64 i, i, r0; setp.ne.u32 p, t, 5; @p st.global.u32 [i], v;
        setp.eq.u32 p, t, 6; @p exit; @!p bra ON; trap; ON: setp.eq.u32 p, t, 7; @!p ret;
        st.global.u32 [i], 99;""",
        y,
        threads=8,
    )
    assert sim.asnumpy(y).tolist() == [11, 11, 11, 7, 7, 0, 7, 99]


def test_calls_pass_and_return_by_value():
    y = sim.zeros(2)
    launch(
        """.reg .f32 v; mov.f32 v, 0f40400000;
        { .param .b32 param0; .param .b32 param1; .param .b32 retval0; .param .b32 retval1;
          st.param.f32 [param0+0], v; st.param.f32 [param1+0], 0f3F000000;
          call.uni (retval0), outer, (param0, param1); ld.param.f32 v, [retval0+0]; }
        st.global.f32 [r0], v;
        { .param .b32 param0; .param .b32 retval0; st.param.f32 [param0], v;
          call (retval0), square, (param0); ld.param.f32 v, [retval0]; }
        st.global.f32 [r0+4], v;""",
        y,
        before=""".func (.param .b32 out) square(.param .b32 in) { .reg .f32 x;
        ld.param.f32 x, [in]; mul.f32 x, x, x; st.param.f32 [out], x; ret; }
        .func (.param .b32 out) outer(.param .b32 a, .param .b32 c) { .reg .f32 x, z; .reg .pred p;
        ld.param.f32 x, [a]; ld.param.f32 z, [c]; setp.gt.f32 p, x, 0f00000000; @!p ret;
        { .param .b32 param0; .param .b32 retval0; st.param.f32 [param0], x;
          call.uni (retval0), square, (param0); ld.param.f32 x, [retval0]; }
        add.f32 x, x, z; st.param.f32 [out], x; ret; }""",
    )
    assert sim.asnumpy(y).tolist() == [9.5, 90.25]


SPECIAL = {
    "%tid.x": lambda t: t % 5,
    "%tid.y": lambda t: t // 5 % 4,
    "%tid.z": lambda t: t // 20,
    "%ntid.x": lambda t: 5,
    "%ntid.z": lambda t: 2,
    "%ctaid.x": lambda t: 0,
    "%nctaid.y": lambda t: 1,
    "%laneid": lambda t: t % 32,
    "%warpid": lambda t: t // 32,
    "%nwarpid": lambda t: 2,
    "%lanemask_eq": lambda t: 1 << t % 32,
    "%lanemask_lt": lambda t: (1 << t % 32) - 1,
    "%lanemask_le": lambda t: (2 << t % 32) - 1,
    "%lanemask_gt": lambda t: 2**32 - (2 << t % 32),
    "%lanemask_ge": lambda t: 2**32 - (1 << t % 32),
    "%dynamic_smem_size": lambda t: 48,
    "WARP_SZ": lambda t: 32,
}


def test_special_registers():
    y = sim.zeros((len(SPECIAL), 40), np.uint32)
    body = """.reg .b32 x, z, w, v; .reg .b64 i; mov.u32 x, %tid.x; mov.u32 w, %tid.y;
    mov.u32 z, %tid.z; mad.lo.u32 z, z, 4, w; mad.lo.u32 x, z, 5, x;
    mul.wide.u32 i, x, 4; add.u64 i, i, r0;"""
    for name in SPECIAL:
        body += f"mov.u32 v, {name}; st.global.u32 [i], v; add.u64 i, i, 160;\n"
    launch(body, y, threads=(5, 4, 2), shared=48)
    want = np.array([[function(t) for t in range(40)] for function in SPECIAL.values()])
    assert np.array_equal(sim.asnumpy(y), want.astype(np.uint32))
