"""Compiles LLVM IR text to machine code and loads it into this process, through llvmlite."""

from __future__ import annotations

import threading
from functools import cache

import llvmlite
import llvmlite.binding as llvm

from gpuconv.sim.errors import SimError

_lock = threading.RLock()  # llvmlite's objects are not thread-safe


def identity() -> str:
    """All that the machine code depends on besides the IR: versions of LLVM and the processor."""
    return "|".join(
        (
            llvmlite.__version__,
            str(llvm.llvm_version_info),
            llvm.get_process_triple(),
            llvm.get_host_cpu_name(),
            _features(),
        )
    )


@cache
def _features() -> str:
    return str(llvm.get_host_cpu_features().flatten())


def _new_machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=_features(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )


_machine = cache(_new_machine)


def build(ir: str) -> bytes:
    """Optimise LLVM IR and return the object file.

    Raises SimError where LLVM refuses the text, which would be a bug of the simulator.
    """
    with _lock:
        machine = _machine()
        try:
            module = llvm.parse_assembly(ir)
            module.triple = machine.triple
            module.data_layout = str(machine.target_data)
            module.verify()
        except RuntimeError as error:
            raise SimError(
                f"the simulator made invalid LLVM IR, please report this: {error}"
            ) from error
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        options.slp_vectorization = True
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        return machine.emit_object(module)


def add_symbol(name: str, address: int) -> None:
    """Make the function `name` known to code that is loaded later."""
    llvm.add_symbol(name, address)


class Code:
    """Machine code loaded into this process, for as long as this object lives."""

    def __init__(self, object_file: bytes) -> None:
        with _lock:
            own = _new_machine()  # MCJIT takes ownership of it, so each engine needs its own
            empty = llvm.parse_assembly("")
            empty.triple = own.triple
            self._engine = llvm.create_mcjit_compiler(empty, own)
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(object_file))
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Address of a function or variable."""
        with _lock:
            found = int(
                self._engine.get_function_address(name)
                or self._engine.get_global_value_address(name)
            )
        if not found:
            raise SimError(f"no symbol {name} in the compiled code, please report this")
        return found
