"""LLVM IR text under construction: lines, blocks and calls; operands, registers and addresses.

A virtual register is an `alloca` of its declared width (a float where only float instructions use
it), which LLVM's mem2reg pass turns into an SSA value.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuconv.sim import layout
from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.program import (
    SIZES,
    TYPES,
    WIDTH,
    Address,
    Function,
    Imm,
    Instruction,
    Not,
    Operand,
    Pair,
    Reg,
    Special,
    Sym,
    Variable,
)

if TYPE_CHECKING:
    from gpuconv.sim.lower import Module

TABLE: dict[str, Callable[[Emitter, Instruction], None]] = {}  # how instructions are lowered
# arithmetic on floats, which has integer arithmetic's names: takes the LLVM type and the operands
FLOAT_TABLE: dict[str, Callable[[Emitter, Instruction, str, list[str]], str]] = {}


def lowers(*ops: str, table: dict[str, Any] = TABLE) -> Callable[[Any], Any]:
    """The decorated function lowers the instructions of these names."""

    def register(function: Any) -> Any:
        table.update(dict.fromkeys(ops, function))
        return function

    return register


@dataclass(slots=True)
class Frame:
    """A function that is being lowered; a called (inlined) function has a frame of its own."""

    function: Function
    prefix: str
    # local and parameter space: name to LLVM pointer
    variables: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)  # register to LLVM type
    leave: str = "exit"
    # local space, checked mode: name to LLVM pointer to one byte for each byte, 1 once written
    written: dict[str, str] = field(default_factory=dict)
    # registers that hold a parameter: LLVM pointer to it
    held: dict[str, str] = field(default_factory=dict)
    # checked mode (doubt.py): LLVM pointers to the words of registers; divisions that are used; the
    # word of the last quotient
    doubts: dict[str, str] = field(default_factory=dict)
    certain: set[int] = field(default_factory=set)
    quotient: str = "0"
    # counted mode: the label that came last, and the loops around each label
    label: str = ""
    loops: dict[str, list[str]] = field(default_factory=dict)


class Emitter:
    """The text of one LLVM function under construction, and what an instruction's lowering uses."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.flush_in_hardware = False  # rely on the processor's flush-to-zero mode
        self.coroutine = False
        self.allocas: list[str] = []
        self.code: list[str] = []
        self.open = True  # whether the current basic block still lacks its terminator
        self.frames: list[Frame] = []
        self.shared: dict[str, int] = {}
        self.names = itertools.count()
        self.instruction: Instruction  # the one that is being lowered
        self.specials: dict[str, str] = {}
        self.access_bits: dict[int, int] = {}  # of an instruction, by its id: Code of races.cu
        self.arguments: dict[str, int] = {}  # registers of the kernel that point into an argument

    # ---- lines ----

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    def fresh(self, stem: str = "t") -> str:
        """A new name for a value or a label."""
        return f"{stem}{next(self.names)}"

    def emit(self, line: str) -> None:
        """Append a line, unless the current block has ended."""
        if self.open:
            self.code.append("  " + line)

    def op(self, text: str) -> str:
        """Emit `%t = text` and return %t."""
        name = "%" + self.fresh()
        self.emit(f"{name} = {text}")
        return name

    def label(self, name: str) -> None:
        """Begin a basic block."""
        if self.open:
            self.code.append(f"  br label %{name}")
        self.code.append(f"{name}:")
        self.open = True

    def end(self, line: str) -> None:
        """Emit the terminator of the current block."""
        self.emit(line)
        self.open = False

    def unsupported(self, what: str = "") -> UnsupportedError:
        where, text = self.module.where(self.instruction), self.instruction.text
        what = what or f"the instruction '{text}'"
        return UnsupportedError(f"{where}: {what} is not modelled by the simulator")

    def need(self, condition: bool, what: str = "") -> None:
        """Raise UnsupportedError, for `what` or the instruction, unless the condition holds."""
        if not condition:
            raise self.unsupported(what)

    def call(self, type_: str, name: str, *arguments: str) -> str:
        """Declare and call an LLVM intrinsic or a helper. An argument is "type value"."""
        types = [re.match(r"<[^>]*>|\S+", a)[0] for a in arguments]  # type: ignore[index]
        self.module.declare(type_, name, types)
        if type_ == "void":
            self.emit(f"call void @{name}({', '.join(arguments)})")
            return ""
        return self.op(f"call {type_} @{name}({', '.join(arguments)})")

    def report(
        self, kind: str, address: str = "0", value: str = "0", by: str = "sim_report"
    ) -> None:
        """Record an error of this thread, of ERRORS."""
        code, site = layout.ERRORS.index(kind), self.module.site(self.instruction)
        who = "ptr %blk", f"i32 {self.linear_thread()}", f"i32 {code}", f"i32 {site}"
        self.call("void", by, *who, f"i64 {address}", f"i64 {value}")

    def argument_of(self, base: object) -> int:
        """Number of the argument that an address's base register points into, or -1."""
        if isinstance(base, Reg) and len(self.frames) == 1:
            return self.arguments.get(base.name, -1)
        return -1

    def intrinsic(self, name: str, type_: str, *values: str) -> str:
        """Call LLVM's intrinsic of this name, whose result and arguments have one type."""
        suffix = {"float": "f32", "double": "f64"}.get(type_, type_)
        if vector := re.fullmatch(r"<(\d+) x (\w+)>", type_):
            suffix = f"v{vector[1]}{vector[2]}"
        return self.call(type_, f"llvm.{name}.{suffix}", *(f"{type_} {v}" for v in values))

    # ---- conversions between LLVM types of registers and instructions ----

    def reshape(self, value: str, have: str, want: str, signed: bool = False) -> str:
        """`value` as another type: the same bits, extended (sign or zero) or truncated."""
        if have == want:
            return value
        if WIDTH[have] == WIDTH[want]:
            return self.op(f"bitcast {have} {value} to {want}")
        if not have.startswith("i"):
            value, have = self.op(f"bitcast {have} {value} to i{WIDTH[have]}"), f"i{WIDTH[have]}"
        middle = f"i{WIDTH[want]}"
        verb = "trunc" if WIDTH[have] > WIDTH[want] else "sext" if signed else "zext"
        value = self.op(f"{verb} {have} {value} to {middle}")
        return self.reshape(value, middle, want)

    # ---- operands ----

    def slot(self, register: Reg) -> tuple[str, str]:
        """LLVM pointer and type of a register."""
        type_ = self.frame.types.get(register.name)
        if type_ is None:
            raise self.unsupported(f"the register {register.name}, which is not declared,")
        if register.name in self.frame.held:
            return self.frame.held[register.name], type_
        return f'%"{self.frame.prefix}{register.name}"', type_

    def read(self, operand: Operand, type_: str) -> str:
        """The operand's value as PTX type `type_`."""
        want = TYPES[type_]
        if isinstance(operand, Reg):
            pointer, have = self.slot(operand)
            narrower = f"'{self.instruction.text}' reading a narrower register"
            self.need(WIDTH[have] >= WIDTH[want], narrower)
            tail = ", !tbaa !1" if operand.name in self.frame.held else ""
            return self.reshape(self.op(f"load {have}, ptr {pointer}{tail}"), have, want)
        if isinstance(operand, Not):
            return self.op(f"xor i1 {self.read(operand.operand, 'pred')}, true")
        if isinstance(operand, Imm):
            return self.constant(operand, type_)
        if isinstance(operand, Special):
            return self.reshape(self.special(operand.name), "i32", want)
        if isinstance(operand, Sym):
            return self.reshape(self.symbol(operand), "i64", want)
        raise self.unsupported()

    def constant(self, operand: Imm, type_: str) -> str:
        want, bits = TYPES[type_], operand.bits
        if type_ == "pred":
            return "true" if bits else "false"
        width = WIDTH[want]
        if want.startswith("i"):
            return str(bits & ((1 << width) - 1))
        if operand.kind == "f64" and type_ == "f32":
            raise self.unsupported("a double constant for a float operand")
        return f"bitcast (i{width} {bits & ((1 << width) - 1)} to {want})"

    def write(self, operand: Operand, type_: str, value: str) -> None:
        """Write `value`, of PTX type `type_`, to a register.

        Into a wider register it is sign- or zero-extended.
        """
        self.need(isinstance(operand, Reg))
        assert isinstance(operand, Reg)
        if operand.name == "_" or operand.name in self.frame.held:
            return
        pointer, want = self.slot(operand)
        value = self.reshape(value, TYPES[type_], want, signed=type_.startswith("s"))
        self.emit(f"store {want} {value}, ptr {pointer}")

    def write_pair(self, operand: Operand, type_: str, value: str, predicate: str) -> None:
        """Write to d, or to both destinations of d|p."""
        if isinstance(operand, Pair):
            self.write(operand.second, "pred", predicate)
            operand = operand.first
        self.write(operand, type_, value)

    def special(self, name: str) -> str:
        """Value of a special register (%tid.x, %laneid, ...) as i32."""
        if name == "WARP_SZ":
            return "32"
        if name in self.specials:
            return self.specials[name]
        extent, _, axis = name[1:].partition(".")
        if extent == "tid" and axis in ("x", "y", "z"):
            pointer = self.field("Thread", "%thr", "tid", "xyz".index(axis))
            return self.op(f"load i32, ptr {pointer}, !tbaa !1")
        if extent in ("ntid", "ctaid", "nctaid") and axis in ("x", "y", "z"):
            return self.block_field(extent, "xyz".index(axis))
        if name == "%laneid":
            return self.op(f"and i32 {self.linear_thread()}, 31")
        if name == "%warpid":
            return self.op(f"lshr i32 {self.linear_thread()}, 5")
        if name == "%nwarpid":
            threads = self.op(f"add i32 {self.block_field('nthreads')}, 31")
            return self.op(f"lshr i32 {threads}, 5")
        if name.startswith("%lanemask_"):
            return self._lane_mask(name[10:])
        if name == "%dynamic_smem_size":
            return self.block_field("dynamic_bytes")
        if name in ("%envreg1", "%envreg2"):  # as cooperative_groups.h asks for it
            place = self.block_field("workspace")
            place = self.op(f"lshr i64 {place}, 32") if name == "%envreg1" else place
            return self.op(f"trunc i64 {place} to i32")
        if name == "%total_smem_size":
            return self.block_field("shared_bytes")
        raise self.unsupported(f"the special register {name}")

    def _lane_mask(self, relation: str) -> str:
        self.need(relation in ("eq", "lt", "le", "gt", "ge"))
        # the bit at which the mask ends or begins; 0 past the last lane
        after = relation in ("le", "gt")
        bit = self.op(f"shl i32 {2 if after else 1}, {self.special('%laneid')}")
        if relation == "eq":
            return bit
        return self.op(f"sub i32 {bit}, 1" if relation[0] == "l" else f"sub i32 0, {bit}")

    def linear_thread(self) -> str:
        x, y, z = (self.special(f"%tid.{axis}") for axis in "xyz")
        rows = self.op(f"mul i32 {z}, {self.block_field('ntid', 1)}")
        rows = self.op(f"add i32 {rows}, {y}")
        rows = self.op(f"mul i32 {rows}, {self.block_field('ntid', 0)}")
        return self.op(f"add i32 {rows}, {x}")

    # ---- records ----

    def field(self, record: str, base: str, name: str, index: int = 0) -> str:
        offset = layout.offset(record, name, index)
        return self.op(f"getelementptr i8, ptr {base}, i64 {offset}")

    def block_field(self, name: str, index: int = 0) -> str:
        """A field of the Block record that does not change while the block runs.

        A coroutine reads it anew after each suspension, as that is better than keeping it for each
        thread.
        """
        type_ = f"i{8 * layout.DTYPES['Block'][name].base.itemsize}"
        pointer = self.field("Block", "%blk", name, index)
        kind = "!tbaa !1" if self.coroutine else "!invariant.load !0"
        return self.op(f"load {type_}, ptr {pointer}, {kind}")

    def set_thread(self, name: str, type_: str, value: str) -> None:
        self.emit(f"store {type_} {value}, ptr {self.field('Thread', '%thr', name)}, !tbaa !1")

    def get_thread(self, name: str, type_: str) -> str:
        return self.op(f"load {type_}, ptr {self.field('Thread', '%thr', name)}, !tbaa !1")

    # ---- addresses ----

    def symbol(self, symbol: Sym) -> str:
        """Address of a variable as i64: for shared memory an offset, otherwise a host address."""
        name, offset = symbol.name, symbol.offset
        if name in self.shared:
            return str(self.shared[name] + offset)
        if name in self.frame.variables:
            pointer = self.frame.variables[name]
        elif name in self.module.program.variables:
            pointer = self.module.global_name(name)
        else:
            raise self.unsupported(f"the address of '{name}'")
        base = self.op(f"ptrtoint ptr {pointer} to i64")
        return self.op(f"add i64 {base}, {offset}") if offset else base

    def base(self, address: Address) -> str:
        """base + offset as i64; an address in shared memory is not yet a host address."""
        if address.base is None:
            return str(address.offset)
        if isinstance(address.base, Sym):
            return self.symbol(Sym(address.base.name, address.base.offset + address.offset))
        _, have = self.slot(address.base)
        value = self.read(address.base, "u64" if WIDTH[have] == 64 else "u32")
        if WIDTH[have] == 32:  # a 32-bit address wraps in 32 bits
            if address.offset:
                value = self.op(f"add i32 {value}, {address.offset}")
            return self.op(f"zext i32 {value} to i64")
        return self.op(f"add i64 {value}, {address.offset}") if address.offset else value

    def shared_to_host(self, offset: str) -> str:
        return self.op(f"add i64 {self.block_field('shared')}, {offset}")

    def pointer(self, value: str) -> str:
        return self.op(f"inttoptr i64 {value} to ptr")

    def shadow(self, variable: Variable) -> str:
        """Zeroed bytes, one for each byte of a variable in local space."""
        name = f'%"{self.frame.prefix}{variable.name}.written"'
        self.allocas.append(f"{name} = alloca [{max(variable.size, 1)} x i8]")
        fill = f"ptr {name}", "i8 0", f"i64 {variable.size}", "i1 false"
        self.call("void", "llvm.memset.p0.i64", *fill)
        return name

    def local(self, variable: Variable) -> str:
        """Stack memory for a variable in the local or parameter space."""
        name = f'%"{self.frame.prefix}{variable.name}.mem"'
        size, align = max(variable.size, 1), max(variable.align, SIZES[variable.type])
        self.allocas.append(f"{name} = alloca [{size} x i8], align {align}")
        return name
