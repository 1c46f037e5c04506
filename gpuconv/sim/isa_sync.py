"""Barriers and warp-level collectives.

Each one stores the thread's operands in its Thread record, suspends the thread, and reads the
result that the scheduler has left there.
"""

from __future__ import annotations

from gpuconv.sim import layout
from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.program import TYPES, Instruction, Operand, Pair

_BAR_RED = {"popc": 1, "and": 2, "or": 3}
_SHUFFLE = {"up": 0, "down": 1, "bfly": 2, "idx": 3}
_VOTE = {"all": 0, "any": 1, "uni": 2, "ballot": 3}
_REDUX = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5}


def wait(b: Emitter, i: Instruction, state: str, /, **fields: str | int) -> None:
    """Set fields of the thread's record and suspend it in `state`."""
    for name, value in fields.items():
        b.set_thread(name, "i64" if name == "value" else "i32", str(value))
    b.set_thread("site", "i32", str(b.module.site(i)))
    b.set_thread("state", "i32", str(layout.STATES.index(state)))
    b.suspend()  # type: ignore[attr-defined]


def _result(b: Emitter, type_: str = "i32") -> str:
    value = b.get_thread("result", "i64")
    return value if type_ == "i64" else b.op(f"trunc i64 {value} to {type_}")


def _result_predicate(b: Emitter) -> str:
    return b.op(f"trunc i32 {b.get_thread('pred', 'i32')} to i1")


def _pred(b: Emitter, operand: Operand) -> str:
    return b.op(f"zext i1 {b.read(operand, 'pred')} to i32")


@lowers("bar", "barrier")
def _bar(b: Emitter, i: Instruction) -> None:
    """bar.{sync,arrive,red}, bar.warp.sync

    `barrier` is the same, but need not be executed by all threads of a warp unless it is .aligned.
    """
    words = [m for m in i.mods if m not in ("cta", "aligned")]
    aligned = i.op == "bar" or "aligned" in i.mods
    kind = words[0] if words else ""
    if kind == "warp":
        b.need(words == ["warp", "sync"])
        wait(b, i, "WARP", a=0, mask=b.read(i.operands[0], "b32"))
        return
    operands = list(i.operands)
    to = operands.pop(0) if kind == "red" else None
    predicate = _pred(b, operands.pop()) if kind == "red" else "0"
    b.need(kind in ("sync", "arrive", "red") and 1 <= len(operands) <= 2)
    count = b.read(operands[1], "u32") if len(operands) == 2 else "0"
    reduction = _BAR_RED[words[1]] if kind == "red" else 0
    state, number = "ARRIVE" if kind == "arrive" else "BARRIER", b.read(operands[0], "u32")
    wait(b, i, state, a=number, b=count, c=reduction, pred=predicate, mask=int(not aligned))
    if to is not None and words[1] == "popc":
        b.write(to, "u32", _result(b))
    elif to is not None:
        b.write(to, "pred", _result(b, "i1"))


@lowers("shfl")
def _shfl(b: Emitter, i: Instruction) -> None:
    """shfl.sync.{up,down,bfly,idx}.b32 d|p, a, lane, clamp, mask"""
    right = len(i.mods) == 3 and i.mods[0] == "sync" and i.mods[2] == "b32"
    b.need(right, f"'{i.name}' (use the .sync form)")
    to, source, *rest = i.operands
    value = b.op(f"zext i32 {b.read(source, 'b32')} to i64")
    lane, clamp, mask = (b.read(operand, "u32") for operand in rest)
    wait(b, i, "SHUFFLE", value=value, a=_SHUFFLE[i.mods[1]], b=lane, c=clamp, mask=mask)
    b.write_pair(to, "b32", _result(b), _result_predicate(b))


@lowers("vote")
def _vote(b: Emitter, i: Instruction) -> None:
    b.need(len(i.mods) == 3 and i.mods[0] == "sync", f"'{i.name}' (use the .sync form)")
    to, source, mask = i.operands
    wait(b, i, "VOTE", a=_VOTE[i.mods[1]], pred=_pred(b, source), mask=b.read(mask, "u32"))
    ballot = i.mods[1] == "ballot"
    b.write(to, "b32" if ballot else "pred", _result(b, "i32" if ballot else "i1"))


@lowers("match")
def _match(b: Emitter, i: Instruction) -> None:
    """match.{any,all}.sync.{b32,b64} d{|p}, a, mask"""
    b.need(len(i.mods) == 3 and i.mods[1] == "sync" and i.mods[2] in ("b32", "b64"))
    to, source, mask = i.operands
    value = b.reshape(b.read(source, i.mods[2]), TYPES[i.mods[2]], "i64")
    wait(b, i, "MATCH", value=value, a=int(i.mods[0] == "all"), mask=b.read(mask, "u32"))
    b.write_pair(to, "b32", _result(b), _result_predicate(b))


@lowers("redux")
def _redux(b: Emitter, i: Instruction) -> None:
    """redux.sync.{add,min,max,and,or,xor}.type d, a, mask"""
    b.need(len(i.mods) == 3 and i.mods[0] == "sync" and i.mods[1] in _REDUX)
    b.need(i.mods[2] in ("u32", "s32", "b32"))
    to, source, mask = i.operands
    value, lanes = b.op(f"zext i32 {b.read(source, 'b32')} to i64"), b.read(mask, "u32")
    signed = int(i.mods[2] == "s32")
    wait(b, i, "REDUX", value=value, a=_REDUX[i.mods[1]], b=signed, mask=lanes)
    b.write(to, "b32", _result(b))


@lowers("activemask")
def _activemask(b: Emitter, i: Instruction) -> None:
    """activemask: the lanes that wait at this instruction once no lane of the warp can continue"""
    wait(b, i, "ACTIVE")
    b.write(i.operands[0], "b32", _result(b))


@lowers("elect")
def _elect(b: Emitter, i: Instruction) -> None:
    """elect.sync d|p, mask: elects the lowest lane of the mask"""
    to, mask = i.operands
    b.need(isinstance(to, Pair))
    wait(b, i, "VOTE", a=_VOTE["ballot"], pred="1", mask=b.read(mask, "u32"))
    lowest = b.call("i32", "llvm.cttz.i32", f"i32 {_result(b)}", "i1 false")
    b.write_pair(to, "b32", lowest, b.op(f"icmp eq i32 {lowest}, {b.special('%laneid')}"))


@lowers("nanosleep")
def _nanosleep(b: Emitter, i: Instruction) -> None:
    """nanosleep: yields to the other threads"""
    wait(b, i, "YIELD", a=0)


def yields(b: Emitter, i: Instruction) -> None:
    """Yield after an instruction by which a thread may wait for others (a = 0) or take work (1)."""
    waits = i.op == "ld" or bool(set(i.mods) & {"cas", "exch"})
    wait(b, i, "YIELD", a=int(not waits))


# ---- calls that only the scheduler makes ---------------------------------------------------------


def host_call(b: Emitter, name: str, arguments: list[str]) -> str:
    """A call in runtime.cu: it enters a kernel, reads or sets the processor's float mode, or
    allocates or frees memory. Returns the result, as i64, or "".
    """
    if name == "sim_alloc":
        memory = b.call("ptr", "calloc", f"i64 {arguments[0]}", "i64 1")
        return b.op(f"ptrtoint ptr {memory} to i64")
    pointers = [b.pointer(a) for a in arguments]
    if name == "sim_resume":
        # a coroutine frame begins with the pointer to its resume function
        step = b.op(f"load ptr, ptr {pointers[0]}")
        b.emit(f"call void {step}(ptr {pointers[0]})")
    elif name == "sim_create":
        b.emit(f"call void {pointers[0]}(ptr {pointers[1]}, ptr {pointers[2]}, ptr {pointers[3]})")
    elif name == "sim_row":
        row = f"i64 {arguments[2]}, i64 {arguments[3]}"
        b.emit(f"call void {pointers[0]}(ptr {pointers[1]}, {row})")
    elif name == "sim_free":
        b.call("void", "free", f"ptr {pointers[0]}")
    elif name == "sim_log_full":
        b.call("void", name, f"i64 {arguments[0]}")
    elif name in ("sim_get_mode", "sim_set_mode"):
        verb = "st" if name == "sim_get_mode" else "ld"
        if b.module.x86:
            b.call("void", f"llvm.x86.sse.{verb}mxcsr", f"ptr {pointers[0]}")
    else:
        raise b.unsupported(f"the call of {name}")
    return ""
