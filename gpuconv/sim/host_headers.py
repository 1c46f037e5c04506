"""Stand-ins for headers of the host's C and C++ libraries, which NVRTC has not.

Most are empty: what kernels use of them is built in. The integers are those of CCCL's cuda/std.
"""

from __future__ import annotations

_INTEGERS = "".join(
    f"typedef signed {kind} int{bits}_t;\ntypedef unsigned {kind} uint{bits}_t;\n"
    for bits, kind in ((8, "char"), (16, "short"), (32, "int"), (64, "long long"))
)


def _macros(**values: str) -> str:
    return "".join(f"#ifndef {n}\n#define {n} {v}\n#endif\n" for n, v in values.items())


_MATH = _macros(
    INFINITY="__int_as_float(0x7f800000)",
    NAN="__int_as_float(0x7fffffff)",
    M_PI="3.14159265358979323846",
)
_FLOATS = _macros(
    FLT_MAX="3.402823466e+38f",
    FLT_MIN="1.175494351e-38f",
    FLT_EPSILON="1.192092896e-07f",
    DBL_MAX="1.7976931348623158e+308",
    DBL_EPSILON="2.2204460492503131e-16",
)
_LIMITS = _macros(INT_MAX="2147483647", INT_MIN="(-2147483647 - 1)", UINT_MAX="4294967295u")
_TEXTS = {"math": _MATH, "float": _FLOATS, "limits": _LIMITS, "stdint": _INTEGERS}
_TEXTS |= dict.fromkeys(("assert", "stdio", "stdlib", "string"), "")
HOST_HEADERS = {f"{name}.h": text for name, text in _TEXTS.items()}
HOST_HEADERS |= {f"c{name}": text for name, text in _TEXTS.items()}
HOST_HEADERS |= dict.fromkeys(
    ("iostream", "cuda.h", "cuda_runtime.h", "device_launch_parameters.h"), _MATH
)
# refused, whether or not the toolkit has it (compile.py looks for this name)
HOST_HEADERS["mma.h"] = "#error crt/mma.h\n"
