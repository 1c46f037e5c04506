"""What reaches the terminal: names that it cannot show, closed streams, warnings of libraries."""

import io
import logging
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from gpuconv import checkpoint, models
from gpuconv.cli import main
from gpuconv.errors import printable

NAMES = ["犬", "e\x1b[31mvil", "two\nlines", "right\u202eleft", "bad\udcff"]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A network of five classes with awkward names, and a picture: their paths."""
    folder = tmp_path_factory.mktemp("named")
    path = folder / "model.safetensors"
    checkpoint.save(models.lenet(num_classes=5), path, classes=NAMES)
    picture = folder / "pi\x1b[2Jcture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(picture)
    for name in NAMES:
        (folder / "set" / "test" / name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(pixels).save(folder / "set" / "test" / name / f"{k}.png")
    (folder / "set" / "train").symlink_to("test")
    return path, picture, folder / "set"


class Stream(io.TextIOWrapper):
    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


def test_printable():
    assert printable("häuser, 犬 and 🐕") == "häuser, 犬 and 🐕"
    assert printable("a\x1b[2J\x00\x9b\n") == r"a\x1b[2J\x00\x9b\n"
    assert printable("a\nb\x7f", keep="\n") == "a\nb\\x7f"
    assert printable("\u202e\udcff") == r"\u202e\udcff"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_name_can_be_printed(named, monkeypatch, encoding):
    model, picture, folder = map(str, named)
    commands = [
        ["predict", model, picture],
        ["evaluate", model, "--data", folder],
        ["steps", "--data", folder, "--repeat", "0"],
        ["patches", model, "--data", folder, "--count", "1", "--filters", "1"],
        ["explain", model, picture, "--class", "two\nlines"],
    ]
    for argv in commands:
        out, err = Stream(encoding), Stream(encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        argv += ["-o", str(named[0].parent / "out.png")] * (argv[0] in ("patches", "explain"))
        assert main(argv) == 0, err.text()
        assert err.text() == ""
        text = out.text()
        assert text
        assert all(c.isprintable() or c == "\n" for c in text), argv
        if argv[0] in ("predict", "evaluate"):
            assert r"two\nlines" in text
            assert ("犬" if encoding == "utf-8" else r"\u72ac") in text
            assert r"bad\udcff" in text


def test_errors_are_printable_too(tmp_path, capsys):
    state = {**models.lenet().state_dict(), "a\x1b[31m": np.ones(3)}
    checkpoint.save(state, tmp_path / "a.safetensors", model={"name": "lenet"})
    for argv in (
        ["evaluate", str(tmp_path / "a.safetensors")],
        ["predict", "no\x1b[2J\n.safetensors", "x"],
        ["tra\x1bin"],
    ):
        assert main(argv) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert told[:-1].isprintable()
        assert r"\x1b" in told


def test_warnings_of_libraries_do_not_stand_beside_our_lines(monkeypatch, capsys):
    def noisy(args):
        warnings.warn("Glyph 29356 missing from font(s)", UserWarning, stacklevel=1)
        logging.getLogger("matplotlib").warning("not a writable directory")
        print("the answer")
        return 0

    monkeypatch.setattr("gpuconv.cli.warmup.run", noisy)
    before = sys.stdout, sys.stderr, list(warnings.filters), list(logging.getLogger().handlers)
    assert main(["warmup"]) == 0
    assert capsys.readouterr() == ("the answer\n", "")
    after = sys.stdout, sys.stderr, list(warnings.filters), list(logging.getLogger().handlers)
    assert after == before


def run(shell, **environment):
    command = shell.replace("gpuconv", f"{sys.executable} -m gpuconv")
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("shell", "code", "err"),
    [
        ("gpuconv demo relu >&-", 0, ""),
        ("gpuconv demo relu >&- 2>&- <&-", 0, ""),
        ("gpuconv demo relu >/dev/full", 2, "gpuconv: no space left on device\n"),
        ("gpuconv demo relu | exit 0; exit ${PIPESTATUS[0]}", 141, ""),
        ("gpuconv trian 2>&-", 2, ""),
        ("gpuconv trian 2>/dev/full", 2, ""),
    ],
)
def test_streams_that_take_nothing(shell, code, err):
    told = run(shell)
    assert (told[0], told[2]) == (code, err)


def test_a_closed_stdout_does_not_become_the_checkpoint(tmp_path, named):
    """The next file that is opened would get number 1, and whatever is printed there."""
    out = tmp_path / "run"
    data = f"--data {named[2]} --epochs 1 --batch 2 --validation 0 --out {out}"
    code, _, err = run(f"gpuconv train {data} >&-")
    assert (code, err) == (0, "")
    checkpoint.read(out / "last.safetensors")


def test_the_interpreter_ends_at_once():
    """Taking it apart took up to a second after much code was compiled."""
    program = (
        "import sys, time, atexit; from gpuconv import __main__; from gpuconv.cli import warmup\n"
        "atexit.register(lambda: print('atexit ran'))\n"
        "def run(args):\n"
        "    import numba; numba.njit(lambda a: a + 1)(1); print(time.time(), flush=True)\n"
        "    return 0\n"
        "warmup.run = run; sys.argv = ['gpuconv', 'warmup']; __main__.main()"
    )
    for _ in range(5):  # the machine may be busy
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        took = time.time() - float(done.stdout.split()[0])
        assert (done.returncode, done.stderr) == (0, "")
        assert "atexit ran" in done.stdout
        if took < 0.3:
            return
    pytest.fail(f"it took {took:.1f} s to end")


def test_ctrl_c_at_any_moment_has_its_code_and_no_traceback():
    """From the moment on at which Python itself has started, which takes about 20 ms."""
    program = (
        "import sys; from gpuconv import __main__; sys.argv = ['gpuconv', 'summary', 'lenet']\n"
        "print('up', flush=True); __main__.main()"
    )
    argv = [sys.executable, "-c", program]
    for delay in (0.001, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
        with subprocess.Popen(argv, stdout=-1, stderr=-1, text=True) as process:
            assert process.stdout.readline() == "up\n"
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        assert process.returncode in (0, 130)  # 0: it had ended before
        assert err in ("", "gpuconv: interrupted\n")
