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


# what sim_access is told about an access: Code of races.cu
READ, WRITE, SHARED, GENERIC, STRONG, ACQUIRE, RELEASE, UPDATE, DATA, ATOMIC, BLIND, REDUCES = (
    1 << n for n in range(12)
)


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
        self.code = STRONG * self.volatile | DATA * ("nc" in words)
        self.code |= ACQUIRE * bool({"acquire", "acq_rel"} & set(words))
        self.code |= RELEASE * bool({"release", "acq_rel"} & set(words))
        self.code |= b.access_bits.get(id(i), 0)


def host_pointer(
    b: Emitter, address: object, space: str, size: int, code: int, value: str = "", type_: str = ""
) -> str:
    """LLVM pointer for an access of `size` bytes, which checked mode verifies first.

    code: READ, WRITE and what else holds. value, type_: what is written, as an LLVM value.
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
    at = b.base(address)
    if b.module.count:
        kind = {READ: "read", WRITE: "write"}.get(code & (READ | WRITE), "both")
        counting.touch(b, at, space, kind, size)
    if b.module.check:
        parts = _words(b, value, type_, size) if value else ("0", "0")
        code |= BLIND * (not value)
        return b.pointer(_checked(b, at, space, size, meta(b, address, space, size, code), parts))
    if space == "shared":
        at = b.shared_to_host(at)
    return b.pointer(at)


def meta(b: Emitter, address: Address, space: str, size: int, code: int) -> int:
    """What sim_access is told about an access, in one word."""
    code |= {"shared": SHARED, "generic": GENERIC}.get(space, 0)
    argument = 1 + b.argument_of(address.base)
    return size | code << 8 | argument << 20 | b.module.site(b.instruction, argument - 1) << 28


def _words(b: Emitter, value: str, type_: str, size: int) -> tuple[str, str]:
    """The bits of a value of up to 16 bytes as two i64; of a longer one the first 16."""
    whole = f"i{8 * size}"
    if type_ != whole:
        value = b.op(f"bitcast {type_} {value} to {whole}")
    if size == 8:
        return value, "0"
    if size < 8:
        return b.op(f"zext {whole} {value} to i64"), "0"
    high = b.op(f"lshr {whole} {value}, 64")
    return b.op(f"trunc {whole} {value} to i64"), b.op(f"trunc {whole} {high} to i64")


def _checked(b: Emitter, at: str, space: str, size: int, meta_: int, parts: tuple[str, str]) -> str:
    """The host address of an access that checked mode verifies, as i64.

    An access that must not happen goes to a place of no consequence.
    """
    ways: list[tuple[str, str]] = []
    good = b.fresh("good")
    if space in ("local", "generic"):
        _check_local(b, at, size, meta_, good, ways)
    if space == "local":
        b.report("BOUNDS_LOCAL", at, str(size))
        found = b.op(f"ptrtoint ptr {b.field('Block', '%blk', 'scratch')} to i64")
    else:
        numbers = ["ptr %blk", f"i64 {at}", f"i64 {meta_}", f"i32 {b.linear_thread()}"]
        values = [f"i64 {part}" for part in parts]
        usual = space in ("shared", "global") and not meta_ >> 8 & STRONG
        name = f"sim_write_{space}" if usual else "sim_access"
        if usual and not meta_ >> 8 & WRITE:
            name, values = f"sim_read_{space}", []
        found = b.call("i64", name, *numbers, *values)
    if not ways:
        return found
    last = b.fresh("last")
    b.label(last)
    b.label(good)
    ways.append((found, last))
    return b.op("phi i64 " + ", ".join(f"[{value}, %{label}]" for value, label in ways))


def _check_local(
    b: Emitter, at: str, size: int, meta_: int, good: str, ways: list[tuple[str, str]]
) -> None:
    """Branch to `good` if the address is aligned and inside one of the thread's local variables."""
    aligned = b.op(f"icmp eq i64 {b.op(f'and i64 {at}, {min(size, 16) - 1}')}, 0")
    for frame in b.frames:
        for variable in frame.function.variables:
            if variable.space != "local" or variable.size < size:
                continue
            base = b.op(f"ptrtoint ptr {frame.variables[variable.name]} to i64")
            offset = b.op(f"sub i64 {at}, {base}")
            inside = b.op(f"icmp ule i64 {offset}, {variable.size - size}")
            here, other = b.fresh("here"), b.fresh("other")
            b.end(f"br i1 {b.op(f'and i1 {inside}, {aligned}')}, label %{here}, label %{other}")
            b.label(here)
            _check_written(b, at, offset, frame.written[variable.name], size, meta_)
            last = b.fresh("last")
            b.label(last)
            ways.append((at, last))
            b.end(f"br label %{good}")
            b.label(other)


def _check_written(b: Emitter, at: str, offset: str, shadow: str, size: int, meta_: int) -> None:
    """Whether bytes of a local variable have been written; a write marks them."""
    place, whole = b.op(f"getelementptr i8, ptr {shadow}, i64 {offset}"), f"i{8 * size}"
    ones = int.from_bytes(bytes([1] * size), "little")
    if meta_ >> 8 & READ:
        was = b.op(f"load {whole}, ptr {place}, align 1")
        bad, on = b.fresh("bad"), b.fresh("on")
        b.end(f"br i1 {b.op(f'icmp eq {whole} {was}, {ones}')}, label %{on}, label %{bad}")
        b.label(bad)
        b.report("UNINITIALISED", at, str(size))
        b.label(on)
    else:
        b.emit(f"store {whole} {ones}, ptr {place}, align 1")


@lowers("ld", "ldu")
def _ld(b: Emitter, i: Instruction) -> None:
    a = Access(b, i)
    to, address = i.operands
    pointer = host_pointer(b, address, a.space, a.bytes, READ | a.code)
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
    pointer = host_pointer(b, address, a.space, a.bytes, WRITE | a.code, value, shape)
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
    if b.module.check:
        device = int("cta" not in i.mods)
        b.call("void", "sim_fence", "ptr %blk", f"i32 {b.linear_thread()}", f"i32 {device}")
    b.emit('fence syncscope("singlethread") seq_cst' if b.module.x86 else "fence seq_cst")
