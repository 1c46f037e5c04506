"""Every command in hostile surroundings: as a user without a home folder and without an entry in
passwd, from an installation that cannot be written, in an ASCII locale, without a terminal, with
full, damaged or missing caches.

One process runs all commands, so that code is compiled once where no cache can be used; each of
those tests is slow. Every command's output must equal that of ordinary surroundings.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpuconv import checkpoint, models, sim
from gpuconv.cli import main

ROOT = Path(__file__).parents[2]
UID = 54321  # of no entry in passwd

TRAIN = ["train", "--data", "set", "--epochs", "1", "--batch", "4", "--out", "run"]
EXACT = [  # whose output must be the same everywhere
    ["predict", "model.safetensors", "a.png"],
    ["evaluate", "model.safetensors", "--data", "set"],
    ["explain", "model.safetensors", "a.png", "--method", "saliency"],
    ["patches", "model.safetensors", "--data", "set", "--filters", "1", "--count", "1"],
    ["filters", "a.png"],
    ["filters", "model.safetensors", "-o", "learned.png"],
    ["summary", "model.safetensors"],
    ["steps", "--data", "set", "--repeat", "1"],
    ["demo", "conv"],
    ["show", "model.safetensors", "--data", "set", "--export", "page.html"],
]
OTHERS = [TRAIN, [*TRAIN[:-2], "--resume", "run"], ["doctor"]]
SLOW = [["bench", "relu", "1x4x8x8", "--seconds", "0.001"], ["warmup", "--batch", "2"]]
SLOW += [["demo", "relu", "--device", "sim"]] if not sim.available() else []
PROGRAM = """
import contextlib, io, json, sys
from gpuconv.cli import main
results = []
for argv in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture
def expected(tmp_path_factory, monkeypatch, capsys):
    """The outputs of EXACT in ordinary surroundings."""
    monkeypatch.chdir(fill(tmp_path_factory.mktemp("ordinary")))
    found = []
    for argv in EXACT:
        assert main(argv) == 0
        found.append(capsys.readouterr().out)
    return found


@pytest.fixture
def place(tmp_path):
    return fill(tmp_path)


def fill(folder):
    """A folder to run in: a network, a picture and a set of pictures."""
    rng = np.random.default_rng(0)
    checkpoint.save(models.lenet(num_classes=2), folder / "model.safetensors", classes=["b", "犬"])
    for split in ("train", "test"):
        for name in ("b", "c"):
            (folder / "set" / split / name).mkdir(parents=True)
            for k in range(6):
                pixels = rng.integers(0, 256, (28, 28), np.uint8)
                Image.fromarray(pixels).save(folder / "set" / split / name / f"{k}.png")
    Image.fromarray(pixels).save(folder / "a.png")
    return folder


@pytest.fixture
def install(tmp_path_factory):
    """A copy of the package; its compiled code comes along."""
    folder = tmp_path_factory.mktemp("install")
    shutil.copytree(
        ROOT / "gpuconv", folder / "gpuconv", ignore=shutil.ignore_patterns("*.pyc", "*.gz")
    )
    shutil.copytree(ROOT / "kernels", folder / "kernels")
    return folder


def without_code(install):
    """No compiled code, and no place for it: a file stands where the folder would be."""
    for folder in [install / "gpuconv", *(install / "gpuconv").rglob("*/")]:
        if folder.name != "__pycache__":
            shutil.rmtree(folder / "__pycache__", ignore_errors=True)
            (folder / "__pycache__").write_text("")


def run(place, install, commands=(*EXACT, *OTHERS, *SLOW), before="", **environment):
    """The commands in one process of an ordinary user; each one's (code, output, errors).

    before: shell commands that prepare the process.
    """
    python = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    drop: list[str] = []
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv, to drop root's rights")
        # The interpreter may lie in root's home: it may be read, but nothing may be written.
        rights = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
        drop = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *rights]
        for path in [place, *place.rglob("*")]:
            os.chown(path, UID, UID)
    for path in [install, *install.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    shell = ["sh", "-c", f'{before}\nexec "$@"', "sh"]
    try:
        done = subprocess.run(
            [*shell, *drop, *python],
            cwd=place,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(install), **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # no terminal
        )
    finally:
        for path in [install, *install.rglob("*/")]:
            path.chmod(0o755)  # so that it can be removed
    assert done.stdout, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def check(results, expected):
    """All went well, at most with the one line that code cannot be kept."""
    for argv, (code, out, err) in zip([*EXACT, *OTHERS, *SLOW], results, strict=False):
        assert code == 0, (argv, err)
        assert out, argv
    said = "".join(err for *_, err in results)
    assert said.count("\n") == bool(said), said
    assert not said or said.startswith("gpuconv: compiled code cannot be kept")
    for argv, (_, out, _), right in zip(EXACT, results, expected, strict=False):
        assert out == right, argv


def test_without_home_passwd_entry_terminal_and_write_access(place, install, expected):
    """Also with an ASCII locale and umask 077."""
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    check(run(place, install, [*EXACT, *OTHERS], "umask 077", **ascii_locale), expected)
    for name in ("page.html", "filters.png", "run/last.safetensors", "run/history.jsonl", "run"):
        assert stat.S_IMODE((place / name).stat().st_mode) & 0o077 == 0, name
    assert not list(place.glob("~*"))  # no folder of that name


@pytest.mark.slow
def test_compiled_code_that_cannot_be_kept(place, install, expected):
    without_code(install)
    check(run(place, install), expected)


@pytest.mark.slow
def test_a_full_cache_disk(place, install, expected):
    without_code(install)
    cache = place / "cache"
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k,mode=777", "tmpfs", str(cache)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        results = run(place, install, XDG_CACHE_HOME=str(cache), HOME=str(cache))
        written = list((cache / "gpuconv" / "compiled").rglob("*.code*"))
    finally:
        subprocess.run(["umount", str(cache)], check=True)
    check(results, expected)
    assert written  # until it was full
    assert all(path.suffix == ".code" for path in written)  # nothing half written


@pytest.mark.slow
def test_damaged_caches(place, install, expected):
    kept = sorted(install.rglob("*.code"))
    assert kept
    for k, path in enumerate(kept):
        content = path.read_bytes()
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes([b"", content[:20], content[:-1], changed, os.urandom(99)][k % 5])
    check(run(place, install), expected)
