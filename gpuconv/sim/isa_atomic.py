"""atom and red: atomic read-modify-write.

In shared memory plain loads and stores are enough, because a block runs on one core.
"""

from __future__ import annotations

from collections.abc import Set

from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.isa_memory import (
    ATOMIC,
    READ,
    REDUCES,
    STRONG,
    WRITE,
    Access,
    host_pointer,
    meta,
)
from gpuconv.sim.prelude import ALIAS
from gpuconv.sim.program import TYPES, Address, Function, Instruction, Operand, Reg, bits_of
from gpuconv.sim.rounding import flush

_COMMUTATIVE = {"add", "min", "max", "and", "or", "xor"}
_ATOMIC = _COMMUTATIVE | {"exch", "cas", "inc", "dec"}


def result_used(i: Instruction, read: Set[str]) -> bool:
    """Whether this is a global atomic whose result is read. read: the registers that are."""
    return not any(m.startswith("shared") for m in i.mods) and _used(i, read)


def _used(i: Instruction, read: Set[str]) -> bool:
    return i.op == "atom" and isinstance(i.operands[0], Reg) and i.operands[0].name in read


def reduction_bits(function: Function, read: Set[str]) -> dict[int, int]:
    """REDUCES of races.cu for atomics whose result nobody reads, by the ids of these."""
    atomics = (i for i in function.instructions if i.op in ("atom", "red"))
    return {id(i): REDUCES for i in atomics if not _used(i, read)}


def order_matters(i: Instruction, read: Set[str]) -> bool:
    """Whether this is a global atomic whose result depends on the order of the blocks.

    The blocks of a kernel with such an instruction run one by one.
    """
    if i.op not in ("atom", "red") or any(m.startswith("shared") for m in i.mods):
        return False
    plain = TYPES.get(i.mods[-1]) in ("i32", "i64") and set(i.mods) & _COMMUTATIVE
    return not plain or result_used(i, read)


@lowers("atom", "red")
def _atom(b: Emitter, i: Instruction) -> None:
    """atom d, [a], b{, c}; red [a], b"""
    access = Access(b, i, _ATOMIC | {"noftz"})
    type_, space = access.type, access.space
    op = next((word for word in i.mods if word in _ATOMIC), "")
    operands = i.operands if i.op == "red" else i.operands[1:]
    b.need(op != "" and access.lanes == 1 and bits_of(type_) in (16, 32, 64))
    code = access.code | STRONG | ATOMIC | READ | WRITE * (op != "cas")
    pointer = host_pointer(b, operands[0], space, access.bytes, code)
    values = [b.read(o, type_) for o in operands[1:]]
    b.need(len(values) == (2 if op == "cas" else 1))
    if space == "shared" or op == "cas" or not TYPES[type_].startswith("i"):
        old = _exchange(b, op, type_, space, pointer, values)
    else:
        verb = {"exch": "xchg", "inc": "uinc_wrap", "dec": "udec_wrap"}.get(op, op)
        if op in ("min", "max") and type_[0] == "u":
            verb = "u" + op
        old = b.op(f"atomicrmw {verb} ptr {pointer}, {TYPES[type_]} {values[0]} seq_cst")
    if op == "cas" and b.module.check:
        _swapped(b, operands[0], space, access.bytes, code | WRITE, old, values[0], TYPES[type_])
    if i.op == "atom":
        b.write(i.operands[0], type_, old)


def _swapped(b: Emitter, address: Operand, space: str, size: int, code: int, old: str, want: str,
             llvm: str) -> None:  # fmt: skip
    """Tell checked mode of the write where a compare-and-swap succeeded."""
    assert isinstance(address, Address)
    whole = f"i{8 * size}"
    same = b.op(f"icmp eq {whole} {b.reshape(old, llvm, whole)}, {b.reshape(want, llvm, whole)}")
    done, on = b.fresh("swapped"), b.fresh("on")
    b.end(f"br i1 {same}, label %{done}, label %{on}")
    b.label(done)
    where = f"i64 {b.base(address)}", f"i64 {meta(b, address, space, size, code)}"
    b.call("void", "sim_swapped", "ptr %blk", *where, f"i32 {b.linear_thread()}")
    b.label(on)


def _exchange(b: Emitter, op: str, type_: str, space: str, pointer: str, values: list[str]) -> str:
    """Read, modify and write; returns the old value.

    Shared memory takes a plain load and store, global memory a loop of compare-and-swap.
    """
    llvm = TYPES[type_]
    whole = f"i{bits_of(type_)}"
    if space == "shared":
        old = b.op(f"load {llvm}, ptr {pointer}, align 1, !tbaa {ALIAS['shared']}")
        new = _modified(b, op, type_, old, values, space)
        b.emit(f"store {llvm} {new}, ptr {pointer}, align 1, !tbaa {ALIAS['shared']}")
        return old
    if op == "cas":
        compare, put = (b.reshape(v, llvm, whole) for v in values)
        pair = b.op(f"cmpxchg ptr {pointer}, {whole} {compare}, {whole} {put} seq_cst seq_cst")
        return b.reshape(b.op(f"extractvalue {{ {whole}, i1 }} {pair}, 0"), whole, llvm)
    again, done, before = b.fresh("again"), b.fresh("done"), b.fresh("before")
    first = b.op(f"load {whole}, ptr {pointer}, align 1")
    b.label(before)
    b.label(again)
    seen, swapped = "%" + b.fresh("seen"), "%" + b.fresh("old")
    b.emit(f"{seen} = phi {whole} [{first}, %{before}], [{swapped}, %{again}]")
    old = b.reshape(seen, whole, llvm)
    new = b.reshape(_modified(b, op, type_, old, values, space), llvm, whole)
    pair = b.op(f"cmpxchg ptr {pointer}, {whole} {seen}, {whole} {new} seq_cst seq_cst")
    b.emit(f"{swapped} = extractvalue {{ {whole}, i1 }} {pair}, 0")
    held = b.op(f"extractvalue {{ {whole}, i1 }} {pair}, 1")
    b.end(f"br i1 {held}, label %{done}, label %{again}")
    b.label(done)
    return old


def _modified(b: Emitter, op: str, type_: str, old: str, values: list[str], space: str) -> str:
    llvm, value = TYPES[type_], values[0]
    if op == "exch":
        return value
    if op == "cas":
        return b.op(
            f"select i1 {b.op(f'icmp eq {llvm} {old}, {value}')}, {llvm} {values[1]}, {llvm} {old}"
        )
    if not llvm.startswith("i"):
        b.need(op == "add" and type_ in ("f32", "f64"))
        # PTX ISA: f32 atomics flush subnormals in global memory and keep them in shared memory
        if type_ == "f32" and space != "shared":
            old, value = flush(b, old), flush(b, value)
        total = b.op(f"fadd {llvm} {old}, {value}")
        return flush(b, total) if type_ == "f32" and space != "shared" else total
    if op in ("add", "and", "or", "xor"):
        return b.op(f"{op} {llvm} {old}, {value}")
    if op in ("min", "max"):
        return b.intrinsic(f"{'s' if type_[0] == 's' else 'u'}{op}", llvm, old, value)
    if op == "inc":
        step = b.op(f"add {llvm} {old}, 1")
        return b.op(f"select i1 {b.op(f'icmp uge {llvm} {old}, {value}')}, {llvm} 0, {llvm} {step}")
    step, over = b.op(f"sub {llvm} {old}, 1"), b.op(f"icmp ugt {llvm} {old}, {value}")
    wrap = b.op(f"or i1 {over}, {b.op(f'icmp eq {llvm} {old}, 0')}")
    return b.op(f"select i1 {wrap}, {llvm} {value}, {llvm} {step}")
