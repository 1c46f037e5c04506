"""Every kernel on every architecture takes no more than is recorded (tests/helpers/registers.py).

    python tests/kernels/test_kernels_registers.py conv_simt.cu     records these files anew
    python tests/kernels/test_kernels_registers.py                  all files; some minutes

GPUCONV_NVRTC names the libnvrtc.so.13 of another release, whose machine code must not spill either:

    pip install --no-deps --target DIR nvidia-cuda-nvrtc==13.0.88
    export GPUCONV_NVRTC=DIR/nvidia/cu13/lib/libnvrtc.so.13
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OTHER = os.environ.get("GPUCONV_NVRTC", "")
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "helpers"), str(HERE.parents[1])]
    if OTHER:
        ctypes.CDLL(OTHER, ctypes.RTLD_GLOBAL)  # what is loaded is not looked for elsewhere

import pytest  # noqa: E402
import registers  # noqa: E402
import test_kernels_build as build  # noqa: E402

from gpuconv.cuda import source  # noqa: E402


def specialisations():
    """(file, macros) of all that plans can ask for."""
    for file, macros, _ in build.specialisations():
        yield file, tuple((name, str(value)) for name, value in macros.items())


def usages(files):
    """(file, macros, architecture, usage), compiled one after another."""
    for file, defines in specialisations():
        for arch in registers.ARCHITECTURES if file in files else ():
            image = build.compiler.to_cubin(source.text(file), build.options(defines), arch)
            yield file, defines, arch, build.facts.resources(image)


def found(files):
    """(specialisation, architecture, {kernel: (registers, blocks)})"""
    for file, defines, arch, usage in usages(files):
        cells = registers.taken(arch, usage, build.threads_of(file, defines))
        yield registers.name(file, defines), arch, cells


@pytest.mark.slow
def test_all_that_is_recorded_exists_and_all_that_exists_is_recorded():
    names = {registers.name(*s) for s in specialisations() if s[0] not in build.TENSOR}
    assert {special for special, _, _ in registers.record()} == names
    assert {name.split(" ")[0] for name in names} == set(source.files()) - set(build.TENSOR)


@pytest.mark.slow
@pytest.mark.skipif(not OTHER, reason="GPUCONV_NVRTC names no libnvrtc of another release")
def test_another_release_spills_nothing():
    environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(OTHER).parent)}
    command = [sys.executable, __file__, "--list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    release, *rows = map(json.loads, done.stdout.splitlines())
    spilled = [
        f"{registers.name(file, defines)} {arch}: {kernel} spills {stack or local} bytes"
        for file, defines, arch, usage in rows
        for kernel, (_, stack, _, local) in usage.items()
        if stack or local
    ]
    assert not spilled, f"NVRTC {release}:\n" + "\n".join(spilled)


def main(arguments):
    if arguments == ["--list"]:
        print(json.dumps(build.compiler._nvrtc().nvrtcVersion()[1:]))
        for usage in usages(source.files()):
            print(json.dumps(usage), flush=True)
    else:
        names = [registers.name(*special) for special in specialisations()]
        for file in arguments or source.files():
            registers.write(found([file]), names)
            registers.record.cache_clear()


if __name__ == "__main__":
    main(sys.argv[1:])
