"""What kernels.lock records of the machine code is what there is; another release spills nothing.

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

import lock_file  # noqa: E402
import pytest  # noqa: E402
import test_kernels_build as build  # noqa: E402

from gpuconv.cuda import source  # noqa: E402


def specialisations():
    """(file, macros) of all that plans can ask for."""
    for file, macros, _ in build.specialisations():
        yield file, tuple((name, str(value)) for name, value in macros.items())


def usages(chosen=None):
    """(file, macros, architecture, usage) of these specialisations, or of all, one by one."""
    for file, defines in specialisations() if chosen is None else chosen:
        for arch in lock_file.ARCHITECTURES:
            image = build.compiler.to_cubin(source.text(file), build.options(defines), arch)
            yield file, defines, arch, build.facts.resources(image)


def recorded():
    """The specialisations that the lock can have: of files for tensor cores, which take seconds to
    compile, the representative ones.
    """
    for file, macros, typical in build.specialisations():
        if typical or file not in build.TENSOR:
            yield file, tuple((name, str(value)) for name, value in macros.items())


def test_more_registers_and_fewer_blocks_than_recorded_fail(monkeypatch):
    held = {"architectures": ["sm_80", "sm_90a"], "registers": {"x.cu A=1": {"f": "60/4 64/4"}}}
    monkeypatch.setattr(lock_file, "of_release", lambda: held)

    def require(count, arch, file="x.cu"):
        lock_file.require(file, (("A", "1"),), arch, {"f": (count, 0, 0, 0)}, {"f": 256})

    for count, arch in ((60, "sm_80"), (62, "sm_80"), (64, "sm_90a")):
        require(count, arch)
    require(90, "sm_80", "y.cu")  # not recorded
    with pytest.raises(AssertionError, match=r"f on sm_80: 63/4 .* recorded 60/4"):
        require(63, "sm_80")
    with pytest.raises(AssertionError, match=r"f on sm_90a: 66/3 .* recorded 64/4"):
        require(66, "sm_90a")


@pytest.mark.slow
def test_all_that_is_recorded_exists_and_all_that_exists_is_recorded():
    names = {lock_file.name(*special): special[0] not in build.TENSOR for special in recorded()}
    required = {name for name, simt in names.items() if simt}
    for release, held in lock_file.record().items():
        assert required <= set(held["registers"]) <= set(names), release
    assert {name.split(" ")[0] for name in names} == set(source.files())


@pytest.mark.slow
@pytest.mark.skipif(not OTHER, reason="GPUCONV_NVRTC names no libnvrtc of another release")
def test_another_release_spills_nothing():
    environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(OTHER).parent)}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    release, *rows = map(json.loads, done.stdout.splitlines())
    spilled = [
        f"{lock_file.name(file, defines)} {arch}: {kernel} spills {stack or local} bytes"
        for file, defines, arch, usage in rows
        for kernel, (_, stack, _, local) in usage.items()
        if stack or local
    ]
    assert not spilled, f"NVRTC {release}:\n" + "\n".join(spilled)


if __name__ == "__main__":
    print(json.dumps(build.compiler._nvrtc().nvrtcVersion()[1:]))
    for usage in usages():
        print(json.dumps(usage), flush=True)
