"""Run test files, then compile every loop that they used for 64-bit ARM. Nothing runs on such a
processor.

    NUMBA_CPU_NAME=x86-64 NUMBA_CPU_FEATURES=+neon NUMBA_CACHE_DIR=EMPTY python aarch64.py FILES

With these settings the loops are made for vectors of four floats and 32 registers, as on ARM, and
run here in the instructions that every x86-64 processor has. Their LLVM code is then compiled once
more. Prints, for each loop, its name and how many fused multiply-adds of whole vectors it has.
"""

import re
import sys
from typing import Any

import llvmlite.binding as llvm
import pytest
from numba.core.codegen import CPUCodeLibrary

TRIPLE = "aarch64-unknown-linux-gnu"
# The one instruction of x86 in Numba's code, where it counts references: "subtract; is it 0?"
X86, PORTABLE = "llvm.x86.atomic.sub.cc.i64", "subtracts_to_zero"
SUBTRACT = f"""define internal i8 @{PORTABLE}(ptr %at, i64 %n, i32 %condition) {{
  %old = atomicrmw sub ptr %at, i64 %n seq_cst
  %zero = icmp eq i64 %old, %n
  %byte = zext i1 %zero to i8
  ret i8 %byte
}}"""
optimize = CPUCodeLibrary._optimize_final_module
code: list[tuple[str, str]] = []  # as it is before it is made for the processor at hand


def keep(library: Any) -> None:
    optimize(library)
    code.append((library.name, str(library._final_module)))


def main() -> int:
    CPUCodeLibrary._optimize_final_module = keep
    failed = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[1:]])
    if failed:
        return int(failed)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu="neoverse-n1", opt=3)
    for name, text in code:
        text = re.sub(r"target triple = .*", f'target triple = "{TRIPLE}"', text)
        text = re.sub(
            r"target datalayout = .*", f'target datalayout = "{machine.target_data}"', text
        )
        text = re.sub(rf"declare .*{X86}.*", SUBTRACT, text).replace(X86, PORTABLE)
        assert "llvm.x86" not in text, name
        module = llvm.parse_assembly(text)
        module.verify()
        assembly = machine.emit_assembly(module)
        print(name, len(re.findall(r"fmla\s+v\d+\.4s", assembly)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
