"""Matrix instructions of a warp: ldmatrix, stmatrix and mma (matrices.cu).

Each lane leaves its registers, or the address of its row, in an array of its frame and is
suspended; the scheduler exchanges them once all 32 lanes have come.
"""

from __future__ import annotations

from gpuconv.sim import layout
from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.isa_memory import READ, SPACES, WRITE, host_pointer
from gpuconv.sim.isa_sync import wait
from gpuconv.sim.program import TYPES, Instruction, Operand, Vector

_A, _B, _C, _ADDRESS = 0, 4, 6, 10  # where they begin in a lane's array of 32-bit words
_WORDS = 12
# the formats of a and b that accumulate in f32: by shape, the registers of a and of b
_SHAPES = {
    ("m16n8k8", "tf32"): (4, 2),
    ("m16n8k16", "f16"): (4, 2),
    ("m16n8k8", "f16"): (2, 1),
    ("m16n8k16", "bf16"): (4, 2),
    ("m16n8k8", "bf16"): (2, 1),
}


@lowers("mma")
def _mma(b: Emitter, i: Instruction) -> None:
    """mma.sync.aligned.shape.row.col.f32.type.type.f32 d, a, b, c"""
    b.need(len(i.mods) == 9 and i.mods[:2] == ("sync", "aligned"))
    shape, rows, columns, d, left, right, c = i.mods[2:]
    b.need((rows, columns, d, c) == ("row", "col", "f32", "f32") and left == right)
    b.need((shape, left) in _SHAPES)
    first, second = _SHAPES[shape, left]
    to, *sources = i.operands
    for place, operand, count in zip((_A, _B, _C), sources, (first, second, 4), strict=True):
        type_ = "f32" if place == _C else "b32"
        for n, item in enumerate(_items(b, operand, count)):
            _put(b, place + n, TYPES[type_], b.read(item, type_))
    _exchange(b, i, f"MMA_{left.upper()}", second)
    for n, item in enumerate(_items(b, to, 4)):
        b.write(item, "f32", _get(b, _C + n, "float"))


@lowers("ldmatrix")
def _ldmatrix(b: Emitter, i: Instruction) -> None:
    """ldmatrix.sync.aligned.m8n8.{x1,x2,x4}{.trans}.shared.b16 {r, ...}, [p]"""
    count, kind = _matrices(b, i)
    to, address = i.operands
    _rows(b, address, count, READ)
    _exchange(b, i, f"LOAD{kind}", count)
    for n, item in enumerate(_items(b, to, count)):
        b.write(item, "b32", _get(b, n, "i32"))


@lowers("stmatrix")
def _stmatrix(b: Emitter, i: Instruction) -> None:
    """stmatrix.sync.aligned.m8n8.{x1,x2,x4}{.trans}.shared.b16 [p], {r, ...}"""
    count, kind = _matrices(b, i)
    address, source = i.operands
    for n, item in enumerate(_items(b, source, count)):
        _put(b, n, "i32", b.read(item, "b32"))
    _rows(b, address, count, WRITE)
    _exchange(b, i, f"STORE{kind}", count)


def _matrices(b: Emitter, i: Instruction) -> tuple[int, str]:
    """(8x8 matrices that the instruction moves, "" or "_TRANS")."""
    b.need(i.mods[:3] == ("sync", "aligned", "m8n8") and i.mods[-1] == "b16")
    words = list(i.mods[3:-1])
    trans = words.pop(1) if words[1:2] == ["trans"] else ""
    b.need(len(words) == 2 and words[0] in ("x1", "x2", "x4") and SPACES.get(words[1]) == "shared")
    return int(words[0][1]), "_TRANS" if trans else ""


def _rows(b: Emitter, address: Operand, count: int, code: int) -> None:
    """The first 8 * count lanes each give the address of a row of 16 bytes."""
    gives, after = b.fresh("row"), b.fresh("rows")
    lane = b.special("%laneid")
    b.end(f"br i1 {b.op(f'icmp ult i32 {lane}, {8 * count}')}, label %{gives}, label %{after}")
    b.label(gives)
    _put(b, _ADDRESS, "ptr", host_pointer(b, address, "shared", 16, code))
    b.label(after)


def _exchange(b: Emitter, i: Instruction, kind: str, count: int) -> None:
    """Suspend the lane until all lanes have come."""
    array = b.op(f"ptrtoint ptr {_array(b)} to i64")
    wait(b, i, "MATRIX", value=array, a=layout.MATRIX.index(kind), b=count, mask=-1)


def _items(b: Emitter, operand: Operand, count: int) -> tuple[Operand, ...]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    b.need(len(items) == count)
    return items


def _array(b: Emitter) -> str:
    """The lane's array, which all matrix instructions of a kernel share."""
    line = f"%matrix = alloca [{_WORDS} x i32], align 16"
    if line not in b.allocas:
        b.allocas.append(line)
    return "%matrix"


def _word(b: Emitter, n: int) -> str:
    return b.op(f"getelementptr i32, ptr {_array(b)}, i64 {n}")


def _put(b: Emitter, n: int, type_: str, value: str) -> None:
    b.emit(f"store {type_} {value}, ptr {_word(b, n)}")


def _get(b: Emitter, n: int, type_: str) -> str:
    return b.op(f"load {type_}, ptr {_word(b, n)}")
