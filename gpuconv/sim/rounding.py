"""Directed rounding to float, as LLVM IR.

The exact result is computed in double as an unevaluated sum s + e: a sum by Knuth's two-sum; a
product of two floats is exact in double; for a quotient or a root, e is the remainder, which has
the sign of the error. `s` is rounded to the nearest float, and where that lies on the wrong side of
s + e, its neighbour is taken. "odd" takes the neighbour with an odd last bit (round to odd), so
that a second rounding, to a 16-bit float, gives the correctly rounded result.
"""

from __future__ import annotations

MODES = ("rz", "rm", "rp", "odd")

_STEP = {
    "rm": "%down = and i1 %above, true\n  %up = and i1 false, false",
    "rp": "%down = and i1 false, false\n  %up = and i1 %below, true",
    "rz": "%minus = icmp slt i32 %b, 0\n  %plus = xor i1 %minus, true\n"
    "  %down = and i1 %above, %plus\n  %up = and i1 %below, %minus",
    "odd": "%last = trunc i32 %b to i1\n  %even = xor i1 %last, true\n"
    "  %down = and i1 %above, %even\n  %up = and i1 %below, %even",
}


def _round(mode: str) -> str:
    return f"""
define internal float @sim.round.{mode}(double %s, double %e) alwaysinline nounwind {{
  %r = fptrunc double %s to float
  %b = bitcast float %r to i32
  %d = fpext float %r to double
  %gt = fcmp ogt double %d, %s
  %lt = fcmp olt double %d, %s
  %eq = fcmp oeq double %d, %s
  %en = fcmp olt double %e, 0.0
  %ep = fcmp ogt double %e, 0.0
  %eqn = and i1 %eq, %en
  %eqp = and i1 %eq, %ep
  %above = or i1 %gt, %eqn
  %below = or i1 %lt, %eqp
  {_STEP[mode]}
  %negative = icmp slt i32 %b, 0
  %one = select i1 %negative, i32 -1, i32 1
  %more = add i32 %b, %one
  %less = sub i32 %b, %one
  %b1 = select i1 %down, i32 %less, i32 %b
  %b2 = select i1 %up, i32 %more, i32 %b1
  %f = bitcast i32 %b2 to float
  ret float %f
}}
define internal float @sim.round.add.{mode}(double %p, double %c) alwaysinline nounwind {{
  %s = fadd double %p, %c
  %bb = fsub double %s, %p
  %u = fsub double %s, %bb
  %v = fsub double %p, %u
  %w = fsub double %c, %bb
  %e = fadd double %v, %w
  %r = call float @sim.round.{mode}(double %s, double %e)
  {_zero_sum(mode)}
}}
define internal float @sim.round.mul.{mode}(float %a, float %b) alwaysinline nounwind {{
  %x = fpext float %a to double
  %y = fpext float %b to double
  %s = fmul double %x, %y
  %r = call float @sim.round.{mode}(double %s, double 0.0)
  ret float %r
}}
define internal float @sim.round.fma.{mode}(float %a, float %b, float %c) alwaysinline nounwind {{
  %x = fpext float %a to double
  %y = fpext float %b to double
  %z = fpext float %c to double
  %p = fmul double %x, %y
  %r = call float @sim.round.add.{mode}(double %p, double %z)
  ret float %r
}}
define internal float @sim.round.div.{mode}(float %a, float %b) alwaysinline nounwind {{
  %x = fpext float %a to double
  %y = fpext float %b to double
  %s = fdiv double %x, %y
  %n = fneg double %s
  %rest = call double @llvm.fma.f64(double %n, double %y, double %x)
  %minus = fneg double %rest
  %flip = fcmp olt double %y, 0.0
  %e = select i1 %flip, double %minus, double %rest
  %r = call float @sim.round.{mode}(double %s, double %e)
  ret float %r
}}
define internal float @sim.round.sqrt.{mode}(float %a) alwaysinline nounwind {{
  %x = fpext float %a to double
  %s = call double @llvm.sqrt.f64(double %x)
  %n = fneg double %s
  %e = call double @llvm.fma.f64(double %n, double %s, double %x)
  %r = call float @sim.round.{mode}(double %s, double %e)
  ret float %r
}}"""


def _zero_sum(mode: str) -> str:
    """When rounding down (rm), a sum that cancels exactly is -0."""
    if mode != "rm":
        return "ret float %r"
    return """%zero = fcmp oeq double %s, 0.0
  %pb = bitcast double %p to i64
  %cb = bitcast double %c to i64
  %both = or i64 %pb, %cb
  %signed = icmp slt i64 %both, 0
  %minus = and i1 %zero, %signed
  %q = select i1 %minus, float -0.0, float %r
  ret float %q"""


def text() -> str:
    """All helper functions; the optimiser removes those that are not used."""
    return "\n".join(_round(mode) for mode in MODES)


NEEDS = (
    ("double", "llvm.fma.f64", ["double", "double", "double"]),
    ("double", "llvm.sqrt.f64", ["double"]),
)
