"""The LLVM IR around a kernel's code: the loop or coroutine, and the alias metadata."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gpuconv.sim import layout

if TYPE_CHECKING:
    from gpuconv.sim.entry import KernelFunction

# What every module ends with: coroutine intrinsics, and type-based alias classes. Global, shared
# and local memory are disjoint, generic accesses may be any of them.
EPILOGUE = """
declare token @llvm.coro.id(i32, ptr, ptr, ptr)
declare i64 @llvm.coro.size.i64()
declare ptr @llvm.coro.begin(token, ptr)
declare i8 @llvm.coro.suspend(token, i1)
declare void @llvm.coro.end(ptr, i1, token)
!0 = !{}
!1 = !{!11, !11, i64 0}
!2 = !{!13, !13, i64 0}
!3 = !{!14, !14, i64 0}
!4 = !{!15, !15, i64 0}
!5 = !{!12, !12, i64 0}
!10 = !{!"simulator"}
!11 = !{!"thread", !10}
!12 = !{!"generic", !10}
!13 = !{!"global", !12}
!14 = !{!"shared", !12}
!15 = !{!"local", !12}
"""
ALIAS = {
    "global": "!2",
    "const": "!2",
    "shared": "!3",
    "local": "!4",
    "generic": "!5",
    "param": "!5",
}


_block = partial(layout.offset, "Block")
_thread = partial(layout.offset, "Thread")


def symbol(name: str) -> str:
    """Name of a kernel in the machine code, which cannot clash with a C library function."""
    return f"kernel.{name}"


def _attributes(kernel: KernelFunction) -> str:
    flush = (
        ' "denormal-fp-math-f32"="preserve-sign,preserve-sign"' if kernel.flush_in_hardware else ""
    )
    return f"nounwind{flush}"


def _indented(lines: list[str]) -> str:
    return "\n".join("  " + line for line in lines)


def loop(kernel: KernelFunction, head: list[str]) -> str:
    """A kernel without collectives: a loop over the threads of one row of a block, inlined."""
    name, code = symbol(kernel.function.name), "\n".join(kernel.code)
    return f"""
define internal void @"{name}.thread"(ptr %blk, i32 %tid.x, i32 %tid.y, i32 %tid.z)
  alwaysinline {_attributes(kernel)} {{
entry:
{_indented([*kernel.allocas, *head, "br label %start"])}
start:
{code}
exit:
  ret void
}}
define void @"{name}"(ptr %blk, i64 %y, i64 %z) {_attributes(kernel)} {{
entry:
  %pn = getelementptr i8, ptr %blk, i64 {_block("ntid")}
  %pr = getelementptr i8, ptr %blk, i64 {_block("reverse")}
  %pe = getelementptr i8, ptr %blk, i64 {_block("error")}
  %n = load i32, ptr %pn, !invariant.load !0
  %r = load i32, ptr %pr, !invariant.load !0
  %reversed = icmp ne i32 %r, 0
  %last = sub i32 %n, 1
  %ty = trunc i64 %y to i32
  %tz = trunc i64 %z to i32
  br label %cell
cell:
  %x = phi i32 [0, %entry], [%x1, %next]
  %back = sub i32 %last, %x
  %tx = select i1 %reversed, i32 %back, i32 %x
  call void @"{name}.thread"(ptr %blk, i32 %tx, i32 %ty, i32 %tz)
{_stop_on_error(kernel)}
next:
  %x1 = add nuw nsw i32 %x, 1
  %whole = icmp eq i32 %x1, %n
  br i1 %whole, label %done, label %cell
done:
  ret void
}}"""


def _stop_on_error(kernel: KernelFunction) -> str:
    if not any("@sim_fail" in line or "@sim_stopped" in line for line in kernel.code):
        return "  br label %next"
    return """  %e = load i32, ptr %pe
  %failed = icmp ne i32 %e, 0
  br i1 %failed, label %done, label %next"""


def coroutine(kernel: KernelFunction, head: list[str]) -> str:
    """A kernel with collectives.

    Creating the coroutine runs nothing; each resume runs one thread up to its next collective.
    """
    code = "\n".join(kernel.code)
    return f"""
define void @"{symbol(kernel.function.name)}"(ptr %blk, ptr %thr, ptr %mem)
  presplitcoroutine {_attributes(kernel)} {{
entry:
  %id = call token @llvm.coro.id(i32 16, ptr null, ptr null, ptr null)
  %size = call i64 @llvm.coro.size.i64()
  %hdl = call noalias ptr @llvm.coro.begin(token %id, ptr %mem)
{_indented(kernel.allocas)}
  %sp = getelementptr i8, ptr %thr, i64 {_thread("frame_size")}
  store i64 %size, ptr %sp
  %hp = getelementptr i8, ptr %thr, i64 {_thread("handle")}
  store ptr %hdl, ptr %hp
  %first = call i8 @llvm.coro.suspend(token none, i1 false)
  switch i8 %first, label %suspended [i8 0, label %begin i8 1, label %cleanup]
begin:
{_indented([*head, "br label %start"])}
start:
{code}
exit:
  %stp = getelementptr i8, ptr %thr, i64 {_thread("state")}
  store i32 {layout.STATES.index("DONE")}, ptr %stp, !tbaa !1
  %last = call i8 @llvm.coro.suspend(token none, i1 true)
  switch i8 %last, label %suspended [i8 0, label %never i8 1, label %cleanup]
never:
  unreachable
cleanup:
  br label %suspended
suspended:
  call void @llvm.coro.end(ptr %hdl, i1 false, token none)
  ret void
}}"""
