"""Compiled kernels on disk: found by another process, never needed, never trusted when damaged."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys

import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)
from gpuconv.sim import cache, jit, machine  # noqa: E402
from gpuconv.sim import compile as nvrtc  # noqa: E402

SCRIPT = """
import sys
import gpuconv.sim as sim
from gpuconv.sim import jit, compile as nvrtc
builds = []
real = jit.build
jit.build = lambda *a, **k: builds.append(1) or real(*a, **k)
source = 'extern "C" __global__ void k(float* y, float a) { y[threadIdx.x] = a * VALUE; }'
module = sim.Module(source, ["-DVALUE=" + sys.argv[1]])
y = sim.zeros(4)
module.launch("k", 1, 4, (y, 2.0))
print(len(builds), nvrtc._nvrtc.cache_info().misses, sim.asnumpy(y)[3])
"""


def run(folder, value="3", **environment) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, value],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(sim.__path__[0]))),
        env={**os.environ, "GPUCONV_CACHE_DIR": str(folder), **environment},
    )
    return done.stdout.split()


def test_a_second_process_compiles_nothing(tmp_path):
    assert run(tmp_path) == ["2", "1", "6.0"]  # the kernel and the scheduler
    assert run(tmp_path) == ["0", "0", "6.0"]
    assert run(tmp_path, "5") == ["1", "1", "10.0"]  # another -D is another kernel
    assert not list((tmp_path / "sim").glob(".new*"))


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "3"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(sim.__path__[0]))),
        env={**os.environ, "GPUCONV_CACHE_DIR": str(folder)},
    )


@pytest.mark.slow
def test_two_processes_at_once_on_a_cold_folder(tmp_path):
    started = [start(tmp_path) for _ in range(2)]
    for process in started:
        assert process.communicate(timeout=300)[0].split()[2] == "6.0"
    assert run(tmp_path) == ["0", "0", "6.0"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_cut_short_leaves_a_usable_folder(tmp_path, number):
    process = start(tmp_path)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.7)
    process.send_signal(number)
    process.communicate(timeout=300)  # it ends
    assert run(tmp_path)[2] == "6.0"
    assert run(tmp_path) == ["0", "0", "6.0"]


def test_private_headers_are_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))
    source = '#include "value.cuh"\nextern "C" __global__ void k(float* y) { y[0] = VALUE; }'
    for value in (1, 2):
        (tmp_path / "value.cuh").write_text(f"#define VALUE {value}\n")
        y = sim.zeros(1)
        sim.Module(source, [f"-I{tmp_path}"]).launch("k", 1, 1, (y,))
        assert sim.asnumpy(y) == value


# ---- a cache that cannot be used, in this process ------------------------------------------------

HOMES = ("HOME", "XDG_CACHE_HOME", "GPUCONV_CACHE_DIR")
SOURCE = 'extern "C" __global__ void k(float* y) { y[threadIdx.x] = 2 * threadIdx.x + SHIFT; }'


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """The kernels that LLVM compiles, while no variable names a cache and the cwd is empty."""
    machine._runtime()  # the scheduler is there already, so that only kernels are counted
    made = []
    build = jit.build
    monkeypatch.setattr(jit, "build", lambda *args: made.append(1) or build(*args))
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return made


def launch(shift=1):
    """Compile or load a kernel that no other test has, run it, and return what it wrote."""
    y = sim.zeros(3)
    sim.Module(SOURCE, [f"-DSHIFT={shift}"], name="cached.cu").launch("k", 1, 3, (y,))
    return list(sim.asnumpy(y))


def home_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("in the way")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def no_home(monkeypatch, tmp_path):
    """As in a container whose user has no entry in passwd."""
    pwd = pytest.importorskip("pwd", reason="this system has no passwd")

    def absent(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", absent)
    assert cache.folder() is None


def relative_folders(monkeypatch, tmp_path):
    no_home(monkeypatch, tmp_path)
    monkeypatch.setenv("GPUCONV_CACHE_DIR", "some/cache")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")


def full_disk(monkeypatch, tmp_path):
    """No file may become longer than 100 bytes."""
    resource = pytest.importorskip("resource", reason="this system has no limits of file sizes")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))
    write = cache._write

    def limited(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            return write(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(cache, "_write", limited)


def somebody_elses(monkeypatch, tmp_path):
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    (tmp_path / "cache" / "sim").mkdir(parents=True, mode=0o777)
    os.chown(tmp_path / "cache" / "sim", 12345, 12345)
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))


UNUSABLE = [home_is_a_file, no_home, relative_folders, full_disk, somebody_elses]


@pytest.mark.parametrize("spoil", UNUSABLE)
def test_without_a_usable_folder_kernels_are_compiled(spoil, builds, monkeypatch, tmp_path):
    spoil(monkeypatch, tmp_path)
    assert launch() == [1, 3, 5]
    assert launch() == [1, 3, 5]
    assert len(builds) == 2
    assert not list((tmp_path / "cwd").iterdir())
    assert not list(tmp_path.glob("cache/sim/*"))


@pytest.fixture
def place(builds, monkeypatch, tmp_path):
    """A cache folder with one entry, and that entry's name."""
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))
    assert launch() == [1, 3, 5]
    (entry,) = (tmp_path / "cache" / "sim").iterdir()
    assert launch() == [1, 3, 5]
    assert len(builds) == 1
    return entry


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 16]) + data[-8:]


DAMAGE = {"truncated": lambda d: d[:-7], "empty": lambda d: b"", "a flipped bit": flipped}
DAMAGE |= {"too short for a checksum": lambda d: d[:20], "zeros": lambda d: bytes(len(d))}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_compiled_again(damage, place, builds):
    whole = place.read_bytes()
    place.write_bytes(DAMAGE[damage](whole))
    assert launch() == [1, 3, 5]
    assert len(builds) == 2
    assert place.read_bytes() == whole  # and mended


def test_what_a_killed_process_left_is_in_nobodys_way(place, builds):
    (place.parent / ".new-abcdef").write_bytes(place.read_bytes()[:100])
    assert launch() == [1, 3, 5]
    assert launch(5) == [5, 7, 9]
    assert len(builds) == 2


def test_an_interrupted_write_leaves_no_file(place, builds, monkeypatch):
    def interrupted(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launch(5)
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert launch(5) == [5, 7, 9]


def test_an_entry_under_another_kernels_name_is_not_used(place, builds):
    assert launch(5) == [5, 7, 9]
    (other,) = set(place.parent.iterdir()) - {place}
    other.write_bytes(place.read_bytes())
    assert launch(5) == [5, 7, 9]
    assert len(builds) == 3


def test_a_folder_in_an_entrys_place_is_left_alone(place, builds):
    place.unlink()
    place.mkdir()
    assert launch() == [1, 3, 5]
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_only_the_user_can_read_or_write_the_folder(place, builds):
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    place.parent.chmod(0o777)
    assert launch() == [1, 3, 5]
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert len(builds) == 1


def test_the_folder_follows_the_systems_rules(monkeypatch, tmp_path):
    if sys.platform in ("win32", "darwin"):
        pytest.skip("these are the rules of XDG")
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "gpuconv" / "sim"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert cache.folder() == tmp_path / ".cache" / "gpuconv" / "sim"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "gpuconv" / "sim"
    monkeypatch.setenv("GPUCONV_CACHE_DIR", "~/mine")
    assert cache.folder() == tmp_path / "mine" / "sim"


HEADERS = {
    "outer.cuh": '#include "deep/inner.cuh"\n#define SHIFT INNER\n',
    "deep/inner.cuh": "#define INNER 3\n",
}


def test_sources_with_headers_of_their_own_are_kept(builds, tmp_path, monkeypatch):
    """They are compiled once, and again when a header changes, comes, or cannot be told."""
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))
    for name, text in HEADERS.items():
        (tmp_path / "cwd" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cwd" / name).write_text(text)
    asked = []
    to_ptx = nvrtc.to_ptx
    monkeypatch.setattr(nvrtc, "to_ptx", lambda *args: asked.append(1) or to_ptx(*args))

    def made(source, *options):
        asked.clear()
        y = sim.zeros(1)
        sim.Module(source + SOURCE, [f"-I{tmp_path / 'cwd'}", *options]).launch("k", 1, 1, (y,))
        return len(asked), float(sim.asnumpy(y)[0])

    outer = '/* its header */ #include "outer.cuh"\n'
    assert made(outer) == (1, 3)
    assert made(outer) == (0, 3)
    (tmp_path / "cwd" / "deep" / "inner.cuh").write_text("#define INNER 4\n")
    assert made(outer) == (1, 4)
    assert made(outer) == (0, 4)
    (tmp_path / "first").mkdir()
    assert made(outer.replace('"outer.cuh"', "<outer.cuh>"), f"-I{tmp_path / 'first'}") == (1, 4)
    macro = '#define NAME "outer.cuh"\n#include NAME\n'
    assert [made(macro) for _ in range(2)] == [(1, 4)] * 2
    asks = '#if __has_include("new.cuh")\n#define SHIFT 5\n#else\n#define SHIFT 6\n#endif\n'
    assert made(asks) == (1, 6)
    (tmp_path / "cwd" / "new.cuh").write_text("")
    assert made(asks) == (1, 5)
