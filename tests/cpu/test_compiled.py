"""The cache of compiled code: what it keeps, and that no failure of it reaches the caller."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import gpuconv
from gpuconv.cpu import compiled

PROGRAM = """
import numpy as np
from gpuconv.cpu import elementwise
a, y = np.array([2.0, -3.0]), np.empty(2)
elementwise.relu_backward(a, a, y)
elementwise.add_relu(a, a, a)
hits = [sum(f.stats.cache_hits.values()) for f in (elementwise.relu_backward, elementwise.add_relu)]
print(y.tolist(), a.tolist(), *hits)
"""
RESULT = "[2.0, 0.0] [4.0, 0.0] "
HIT, MISS = RESULT + "1 1\n", RESULT + "0 0\n"


@pytest.fixture
def package(tmp_path):
    """A copy of what the compiled loops need of gpuconv, without what is already compiled."""
    source, copy = Path(gpuconv.__file__).parent, tmp_path / "installed" / "gpuconv"
    shutil.copytree(source / "cpu", copy / "cpu", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "errors.py", "shapes.py", "threads.py"):
        shutil.copy(source / name, copy / name)
    return copy


def run(package, settings=(), before=None):
    """(stdout, stderr) of the program in a process of its own, in a folder that is empty after."""
    here = package.parent.parent / "here"
    here.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(package.parent.parent / "home"),
        "PYTHONPATH": str(package.parent),
        **dict(settings),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=here, env=environment, preexec_fn=before,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not list(here.iterdir())
    return done.stdout, done.stderr


def test_a_second_process_finds_the_code_and_an_edit_of_any_file_makes_it_new(package):
    assert run(package) == (MISS, "")
    assert run(package) == (HIT, "")
    with open(package / "cpu" / "simd.py", "a") as file:
        file.write("# edited\n")
    assert run(package) == (MISS, "")
    assert run(package) == (HIT, "")


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda content: bytes(range(256)) * 10,
    "one bit": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
}


def test_a_damaged_file_is_a_miss_and_is_mended(package, tmp_path):
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    run(package, kept)
    files = list((tmp_path / "kept").glob("*/*.code"))
    assert len(files) == 2
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
    for name, damage in DAMAGE.items():
        for file in files:
            file.write_bytes(damage(file.read_bytes()))
        assert run(package, kept) == (MISS, ""), name
        assert run(package, kept) == (HIT, ""), name


def test_a_folder_in_place_of_the_file_is_a_miss(package):
    run(package)
    for file in (package / "cpu" / "__pycache__").glob("*.code"):
        file.unlink()
        file.mkdir()
    assert run(package) == (MISS, "")
    assert run(package) == (HIT, "")  # from the user's folder
    assert list(Path(package.parent.parent, "home", ".cache", "gpuconv").rglob("*.code"))


NOWHERE = {"NUMBA_CACHE_DIR": "/dev/null/a", "XDG_CACHE_HOME": "/dev/null/b"}


def expect_one_line(output):
    assert output[0] == MISS
    assert output[1].startswith("gpuconv: compiled code cannot be kept")
    assert output[1].count("\n") == 1


def test_an_installation_that_cannot_be_written_compiles_in_each_run(package):
    (package / "cpu" / "__pycache__").write_text("in the way of the folder, for root too")
    expect_one_line(run(package, NOWHERE))
    expect_one_line(run(package, NOWHERE))


def test_a_full_disk_leaves_nothing_behind(package):
    resource = pytest.importorskip("resource")

    def no_file_may_grow():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    expect_one_line(run(package, {"PYTHONDONTWRITEBYTECODE": "1"}, no_file_may_grow))
    assert not list(package.parent.parent.rglob("*.code*"))


def test_no_folder_is_relative_where_the_user_has_no_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    folders = list(compiled._folders(compiled.__file__))
    assert folders
    assert all(folder.is_absolute() for folder in folders)


def test_options_reach_the_compiler():
    @compiled.compiled(fastmath={"reassoc"}, error_model="numpy")
    def third(x):
        return x / 3

    assert third.targetoptions["fastmath"] == {"reassoc"}
    assert third.targetoptions["error_model"] == "numpy"
    assert third.targetoptions["nogil"]
    assert third(3.0) == 1.0
