"""The cache of compiled code: what it keeps, and that no failure of it reaches the caller."""

import importlib.util
import math
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import gpuconv
from gpuconv.cpu import compiled

MODULE = """
from gpuconv.cpu.compiled import compiled

@compiled
def double(x):
    return 2 * x
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A file with a compiled function; its code may be kept beside it or in the user's folder."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "_complained", False)
    file = tmp_path / "installed" / "loops.py"
    file.parent.mkdir()
    file.write_text(MODULE)
    return file


def is_found(module):
    """Whether a function that was just imported finds its code; it is right in any case."""
    compiled._sources.cache_clear()
    spec = importlib.util.spec_from_file_location("loops", module)
    loops = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loops)
    assert loops.double(21.0) == 42.0
    return bool(loops.double.stats.cache_hits)


PROGRAM = """
import numpy as np
from gpuconv.cpu import elementwise
a, y = np.array([2.0, -3.0]), np.empty(2)
elementwise.relu_backward(a, a, y)
print(y.tolist(), sum(elementwise.relu_backward.stats.cache_hits.values()))
"""


def test_another_process_finds_the_code_and_an_edit_of_any_file_makes_it_new(tmp_path):
    source, copy = Path(gpuconv.__file__).parent, tmp_path / "gpuconv"
    shutil.copytree(source / "cpu", copy / "cpu", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "errors.py", "shapes.py", "threads.py"):
        shutil.copy(source / name, copy / name)

    def run():
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )

    for hits in (0, 1):
        done = run()
        assert (done.stdout, done.stderr) == (f"[2.0, 0.0] {hits}\n", "")
    with open(copy / "cpu" / "simd.py", "a") as file:
        file.write("# edited\n")
    assert run().stdout == "[2.0, 0.0] 0\n"


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda content: bytes(range(256)) * 10,
    "one bit": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
}


def test_a_damaged_file_is_a_miss_and_is_mended(module, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    assert not is_found(module)
    (file,) = (tmp_path / "kept").glob("*/*.code")
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    for name, damage in DAMAGE.items():
        file.write_bytes(damage(file.read_bytes()))
        assert not is_found(module), name
        assert is_found(module), name
    assert capfd.readouterr().err == ""


def test_a_folder_in_place_of_the_file_is_a_miss(module, tmp_path):
    is_found(module)
    (file,) = (module.parent / "__pycache__").glob("*.code")
    file.unlink()
    file.mkdir()
    assert not is_found(module)
    assert is_found(module)  # from the user's folder
    assert list((tmp_path / "cache" / "gpuconv").rglob("*.code"))


def expect_one_line(capfd):
    error = capfd.readouterr().err
    assert error.startswith("gpuconv: compiled code cannot be kept")
    assert error.count("\n") == 1


def test_an_installation_that_cannot_be_written_compiles_in_each_run(module, monkeypatch, capfd):
    (module.parent / "__pycache__").write_text("in the way of the folder, for root too")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/dev/null/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/b")
    for _ in range(2):
        assert not is_found(module)
    expect_one_line(capfd)


def test_a_full_disk_leaves_nothing_behind(module, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        found = is_found(module)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not found
    assert not list(tmp_path.rglob("*.code*"))


def test_a_complaint_that_nobody_can_hear_is_no_failure(module, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError("No space left on device")

    monkeypatch.setattr(compiled, "_write", lambda path, content: Full().write(content))
    for stderr in (Full(), None):
        monkeypatch.setattr(compiled, "_complained", False)
        monkeypatch.setattr(sys, "stderr", stderr)
        assert not is_found(module)


@pytest.mark.parametrize("setting", ["", "~/kept", "~nobody-of-this-name/kept"])
def test_no_folder_is_relative_where_the_user_has_no_home(setting, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", setting)
    monkeypatch.setenv("XDG_CACHE_HOME", "~/.cache")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    folders = list(compiled._folders(compiled.__file__))
    assert folders
    assert all(folder.is_absolute() for folder in folders)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "~/kept")
    first, *_, last = compiled._folders(compiled.__file__)
    assert first.is_relative_to(tmp_path / "kept")
    assert last.is_relative_to(tmp_path / "kept" / "gpuconv")


def test_options_reach_the_compiler():
    @compiled.compiled(fastmath={"reassoc"})
    def share(x, y):
        return x / y

    assert share.targetoptions["fastmath"] == {"reassoc"}
    assert share.targetoptions["nogil"]
    assert share(3.0, 3.0) == 1.0
    assert share(3.0, 0.0) == math.inf


def test_an_inner_function_serves_compiled_ones_alone():
    @compiled.inner
    def half(x):
        return x / 2

    @compiled.compiled
    def quarter(x):
        return half(half(x))

    assert quarter(8.0) == 2.0
    with pytest.raises(TypeError, match="half is for compiled functions to call"):
        half(8.0)
