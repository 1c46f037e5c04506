"""Loads, stores, address conversions, atomics and fences.

Memory is sequentially consistent, so memory orders and scopes are parsed and have no effect.
Global, constant, local and parameter addresses are host addresses; a shared address is an offset
into the block's shared memory.
"""

from __future__ import annotations

from collections.abc import Set

from gpuconv.sim import counting
from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.prelude import ALIAS
from gpuconv.sim.program import TYPES, Address, Instruction, Sym, Vector, bits_of

SPACES = {name: name for name in ("global", "shared", "local", "param", "const")}
SPACES |= {"shared__cta": "shared", "param__entry": "param", "param__func": "param"}
_ORDERS = """
weak volatile relaxed acquire release acq_rel cta cluster gpu sys unified ca cg cs lu cv wb wt nc
"""
ORDERS = set(_ORDERS.split())


class Access:
    """Space, type, vector length and semantics of a memory instruction, read from its modifiers."""

    def __init__(self, b: Emitter, i: Instruction, also: Set[str] = frozenset()) -> None:
        *words, self.type = i.mods
        self.space, self.lanes, self.volatile = "generic", 1, False
        for word in words:
            if word in SPACES:
                self.space = SPACES[word]
            elif word in ("v2", "v4", "v8"):
                self.lanes = int(word[1])
            elif word in ("volatile", "relaxed", "acquire", "release"):
                self.volatile = True
            else:
                b.need(word in ORDERS | also or word.startswith(("L1__", "L2__")))
        b.need(self.type in TYPES and self.type != "pred")
        self.bytes = bits_of(self.type) // 8 * self.lanes


def host_pointer(
    b: Emitter, address: object, space: str, size: int, kind: str, strong: bool
) -> str:
    """LLVM pointer for an access of `size` bytes, which checked mode verifies first.

    kind: "read", "write" or "both". strong: a strong operation of the memory model (atomic,
    volatile, acquire, release), by which threads may synchronise.
    """
    if not isinstance(address, Address):
        raise b.unsupported()
    if space == "param" and isinstance(address.base, Sym):
        name = address.base.name
        b.need(name in b.frame.variables, f"the parameter {name}")
        return b.op(
            f"getelementptr i8, ptr {b.frame.variables[name]}, "
            f"i64 {address.base.offset + address.offset}"
        )
    value = b.base(address)
    if b.module.count:
        counting.touch(b, value, space, kind, size)
    if b.module.check:
        _check(b, value, space, size, kind, strong)
    if space == "shared":
        value = b.shared_to_host(value)
    return b.pointer(value)


def _check(b: Emitter, value: str, space: str, size: int, kind: str, strong: bool) -> None:
    """Leave the kernel with an error where the access is wrong.

    It is if it is out of bounds or misaligned, reads memory that was never written, or races with
    another thread's access.
    """
    good, bad = b.fresh("good"), b.fresh("bad")
    if space in ("local", "generic"):
        _check_local(b, value, size, good)
        if space == "local":
            b.fail("BOUNDS_LOCAL", value, str(size))  # type: ignore[attr-defined]
            b.label(good)
            return
    code = {"read": 1, "write": 2, "both": 3}[kind] + 16 * strong
    code += 4 if space == "shared" else 8 if space == "generic" else 0
    site = b.module.site(b.instruction)
    access = f"i64 {value}", f"i32 {size}", f"i32 {code}", f"i32 {b.linear_thread()}", f"i32 {site}"
    found = b.call("i32", "sim_check", "ptr %blk", *access)
    b.end(f"br i1 {b.op(f'icmp eq i32 {found}, 0')}, label %{good}, label %{bad}")
    b.label(bad)
    b.fail(found, value, str(size))  # type: ignore[attr-defined]
    b.label(good)


def _check_local(b: Emitter, value: str, size: int, good: str) -> None:
    """Branch to `good` if the address is aligned and inside one of the thread's local variables."""
    aligned = b.op(f"icmp eq i64 {b.op(f'and i64 {value}, {min(size, 16) - 1}')}, 0")
    for frame in b.frames:
        for variable in frame.function.variables:
            if variable.space == "local" and variable.size >= size:
                base = b.op(f"ptrtoint ptr {frame.variables[variable.name]} to i64")
                inside = b.op(
                    f"icmp ule i64 {b.op(f'sub i64 {value}, {base}')}, {variable.size - size}"
                )
                other = b.fresh("other")
                b.end(f"br i1 {b.op(f'and i1 {inside}, {aligned}')}, label %{good}, label %{other}")
                b.label(other)


@lowers("ld", "ldu")
def _ld(b: Emitter, i: Instruction) -> None:
    a = Access(b, i)
    to, address = i.operands
    pointer = host_pointer(b, address, a.space, a.bytes, "read", a.volatile)
    llvm = TYPES[a.type]
    shape = f"<{a.lanes} x {llvm}>" if a.lanes > 1 else llvm
    fixed = a.space == "param" and _is_entry_parameter(b, address)
    tail = ", !invariant.load !0" if fixed else f", !tbaa {ALIAS[a.space]}"
    volatile = "volatile " if a.volatile else ""
    value = b.op(f"load {volatile}{shape}, ptr {pointer}, align 1{tail}")
    if a.lanes == 1:
        b.write(to, a.type, value)
        return
    b.need(isinstance(to, Vector) and len(to.items) == a.lanes)
    assert isinstance(to, Vector)
    for lane, item in enumerate(to.items):
        b.write(item, a.type, b.op(f"extractelement {shape} {value}, i32 {lane}"))


def _is_entry_parameter(b: Emitter, address: object) -> bool:
    base = address.base if isinstance(address, Address) else None
    named = isinstance(base, Sym) and any(p.name == base.name for p in b.frame.function.params)
    return named and len(b.frames) == 1 and not b.module.host


@lowers("st")
def _st(b: Emitter, i: Instruction) -> None:
    a = Access(b, i)
    address, source = i.operands
    b.need(a.space != "const")
    llvm = TYPES[a.type]
    if a.lanes == 1:
        shape, value = llvm, b.read(source, a.type)
    else:
        b.need(isinstance(source, Vector) and len(source.items) == a.lanes)
        assert isinstance(source, Vector)
        shape, value = f"<{a.lanes} x {llvm}>", "poison"
        for lane, item in enumerate(source.items):
            value = b.op(
                f"insertelement {shape} {value}, {llvm} {b.read(item, a.type)}, i32 {lane}"
            )
    pointer = host_pointer(b, address, a.space, a.bytes, "write", a.volatile)
    volatile = "volatile " if a.volatile else ""
    b.emit(f"store {volatile}{shape} {value}, ptr {pointer}, align 1, !tbaa {ALIAS[a.space]}")


@lowers("cvta")
def _cvta(b: Emitter, i: Instruction) -> None:
    """cvta{.to}.space: only shared addresses differ from generic addresses"""
    *words, type_ = i.mods
    to, source = i.operands
    space = SPACES.get(words[-1])
    b.need(space is not None and type_ in ("u64", "u32"))
    value = b.read(source, type_)
    if space == "shared":
        b.need(type_ == "u64")
        if words[0] == "to":
            value = b.op(f"sub i64 {value}, {b.block_field('shared')}")
        else:
            value = b.shared_to_host(value)
    b.write(to, type_, value)


@lowers("isspacep")
def _isspacep(b: Emitter, i: Instruction) -> None:
    space, source = SPACES.get(i.mods[0]), b.read(i.operands[1], "u64")
    b.need(space in ("shared", "global"))
    offset = b.op(f"sub i64 {source}, {b.block_field('shared')}")
    size = b.op(f"zext i32 {b.block_field('shared_bytes')} to i64")
    inside = b.op(f"icmp ult i64 {offset}, {size}")
    b.write(i.operands[0], "pred", inside if space == "shared" else b.op(f"xor i1 {inside}, true"))


@lowers("prefetch", "prefetchu")
def _nothing(b: Emitter, i: Instruction) -> None:
    """prefetch, prefetchu: a hint, with no effect here"""


@lowers("membar", "fence")
def _fence(b: Emitter, i: Instruction) -> None:
    """membar, fence: on x86, which keeps stores in order, a compiler barrier"""
    b.need(
        set(i.mods) <= {"cta", "gl", "sys", "gpu", "sc", "acq_rel", "cluster", "acquire", "release"}
    )
    b.emit('fence syncscope("singlethread") seq_cst' if b.module.x86 else "fence seq_cst")
