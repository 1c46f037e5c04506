"""The command line: the commands that need no trained network, and bad arguments."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from scipy.signal import correlate2d

import gpuconv
from gpuconv.cli import main
from gpuconv.cli.main import COMMANDS
from gpuconv.filters import FILTERS, apply, to_pixels


@pytest.fixture
def refused(capsys):
    """Run a command that must fail with exit code 2 and one line; returns that line."""

    def run(*argv):
        assert main([str(argument) for argument in argv]) == 2
        told = capsys.readouterr()
        assert told.err.startswith("gpuconv: ")
        assert told.err.count("\n") == 1
        assert "Traceback" not in told.err
        return told.err[len("gpuconv: ") : -1]

    return run


@pytest.fixture
def said(capsys):
    """Run a command that must succeed without a word on stderr; returns what it printed."""

    def run(*argv):
        assert main([str(argument) for argument in argv]) == 0
        told = capsys.readouterr()
        assert told.err == ""
        return told.out

    return run


def numbers(text):
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text)]


# ---- the frame ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(said, command):
    text = said(command, "--help")
    assert f"examples:\n  gpuconv {command}" in text
    assert len(text.splitlines()[0]) > len("usage: gpuconv")


def test_help_and_version(said):
    assert all(command in said("--help") for command in COMMANDS)
    assert re.fullmatch(r"gpuconv \d+\.\d+\.\d+\n", said("--version"))


def test_no_command_prints_the_help(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_help_loads_nothing_heavy():
    code = (
        "import sys, gpuconv.cli; gpuconv.cli.main(['--help']);"
        "print([m for m in ('numpy', 'numba', 'PIL', 'matplotlib', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["steps", "--lrr", "1"], "steps: unknown option '--lrr'; did you mean '--lr'?"),
        (["train", "more"], "train: unexpected argument 'more'"),
        (["predict"], "predict: the following arguments are required: CHECKPOINT, IMAGE"),
        (["summary", "lnet"], "unknown model 'lnet'; did you mean 'lenet'?"),
        (["summary", "lenet", "--input", "1,32"], "expected channels,height,width such as 1,32,32"),
        (["summary", "lenet", "--input", "1,0,32"], "expected channels,height,width"),
        (["summary", "lenet", "--classes", "0"], "a whole number of at least 1, got '0'"),
        (["summary", "none.safetensors"], "none.safetensors: there is no such file"),
        (["steps", "--device", "refrence"], "unknown device 'refrence'; did you mean 'reference'?"),
        (["steps", "--data", "mnits"], "unknown data set 'mnits'; did you mean 'mnist'?"),
        (["steps", "--index", "60000"], "there is no image 60000 in mnist train, expected 0 to 59"),
        (["steps", "--lr", "nan"], "expected a number of at least 0, got 'nan'"),
        (["demo", "cnov"], "invalid choice: 'cnov'"),
        (["demo", "conv", "--image", "1 2; 3"], "rows of equal length"),
        (["demo", "conv", "--image", "1 x"], "expected a matrix of numbers, 'x' is none"),
        (["demo", "conv", "--image", "1/0 1"], "'1/0' is none"),
        (["demo", "conv", "--image", ""], "rows of equal length"),
        (["demo", "conv", "--image", "1 2; 3 4"], "a window of 3x3 pixels"),
        (["demo", "conv", "--filter", "sharpn"], "unknown filter 'sharpn'; did you mean 'sharpen'"),
        (["demo", "conv", "--size", "2"], "demo conv: takes no --size"),
        (["demo", "relu", "--padding", "2"], "demo relu: takes no --padding"),
        (["demo", "pool", "--padding", "2"], "padding 2 is more than half of the window"),
        (["filters", "none.png"], "none.png: no such file or directory"),
        (["evaluate", "x.safetensors", "--split", "tset"], "unknown split 'tset'; did you mean 't"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_line(refused, argv, expected):
    assert expected in refused(*argv)


def test_a_long_message_is_shortened_in_the_middle(refused):
    text = refused("predict", "x\x1b" * 1000 + "/last.safetensors", "digit.png")
    assert len(text) < 700
    assert text.startswith("x\\x1bx")
    assert text.endswith("last.safetensors: file name too long")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(args):
        raise KeyError("a bug")

    monkeypatch.setattr("gpuconv.cli.doctor.run", broken)
    with pytest.raises(KeyError):
        main(["doctor"])


def test_bad_input_keeps_its_traceback_if_asked(monkeypatch):
    monkeypatch.setenv("GPUCONV_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown model"):
        main(["summary", "lnet"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "MemoryError"),
        (ValueError("two\nlines"), 2, "two lines"),
        (OSError(28, "No space left on device", "a/b"), 2, "a/b: no space left on device"),
        (FloatingPointError("epoch 1: the loss is not finite"), 2, "epoch 1: the loss"),
    ],
)
def test_what_a_command_raises(monkeypatch, capsys, error, code, text):
    def stopped(args):
        raise error

    monkeypatch.setattr("gpuconv.cli.doctor.run", stopped)
    assert main(["doctor"]) == code
    told = capsys.readouterr().err
    assert told.startswith(f"gpuconv: {text}")
    assert told.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_not_lost_while_python_compiles(number, code, monkeypatch):
    """It drops exceptions of signal handlers in constant expressions."""
    powers = ",".join(f"2**{i % 40 + 30}" for i in range(60_000))  # most of a second

    def imports(args):
        subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -{number} {os.getpid()}"])
        compile(f"[{powers}]", "a module", "exec")
        time.sleep(0.5)
        return 0

    monkeypatch.setattr("gpuconv.cli.doctor.run", imports)
    assert main(["doctor"]) == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_of_a_real_process(number, code):
    wait = "import time; print('up', flush=True); time.sleep(30)"
    program = (
        "import sys; from gpuconv.cli import doctor, main\n"
        f"def run(args): {wait}\n"
        "doctor.run = run; sys.exit(main(['doctor']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    assert process.returncode == code
    assert told.startswith("gpuconv: ")
    assert told.count("\n") == 1


def test_sigterm_handler_is_put_back(said):
    before = signal.getsignal(signal.SIGTERM)
    said("demo", "relu")
    assert signal.getsignal(signal.SIGTERM) is before


# ---- demo --------------------------------------------------------------------------------------

GOLDEN_A = """\
  row 0, column 0:  1*1 + 1*0 + 1*1 + 0*0 + 1*1 + 1*0 + 0*1 + 0*0 + 1*1 = 4
  row 0, column 1:  1*1 + 1*0 + 0*1 + 1*0 + 1*1 + 1*0 + 0*1 + 1*0 + 1*1 = 3
  row 0, column 2:  1*1 + 0*0 + 0*1 + 1*0 + 1*1 + 0*0 + 1*1 + 1*0 + 1*1 = 4
  row 1, column 0:  0*1 + 1*0 + 1*1 + 0*0 + 0*1 + 1*0 + 0*1 + 0*0 + 1*1 = 2
  row 1, column 1:  1*1 + 1*0 + 1*1 + 0*0 + 1*1 + 1*0 + 0*1 + 1*0 + 1*1 = 4
  row 1, column 2:  1*1 + 1*0 + 0*1 + 1*0 + 1*1 + 1*0 + 1*1 + 1*0 + 0*1 = 3
  row 2, column 0:  0*1 + 0*0 + 1*1 + 0*0 + 0*1 + 1*0 + 0*1 + 1*0 + 1*1 = 2
  row 2, column 1:  0*1 + 1*0 + 1*1 + 0*0 + 1*1 + 1*0 + 1*1 + 1*0 + 0*1 = 3
  row 2, column 2:  1*1 + 1*0 + 1*1 + 1*0 + 1*1 + 0*0 + 1*1 + 0*0 + 0*1 = 4

feature map, 3x3:
  4 3 4
  2 4 3
  2 3 4
"""


@pytest.mark.parametrize("device", ["auto", "cpu", "reference"])
def test_demo_conv_is_golden_a(said, device):
    assert GOLDEN_A in said("demo", "conv", "--device", device)


def test_demo_conv_with_matrices_of_ones_own(said):
    image, weights = np.random.default_rng(1).integers(-9, 10, (2, 4, 4))
    rows = ["; ".join(" ".join(map(str, row)) for row in m) for m in (image, weights[:2, :3])]
    text = said("demo", "conv", "--image", rows[0], "--filter", rows[1], "--padding", "1")
    result = np.array(numbers(text.partition("feature map, 5x4:\n")[2].partition("\n\n")[0]))
    wanted = correlate2d(np.pad(image, 1), weights[:2, :3], mode="valid")
    assert np.array_equal(result.reshape(5, 4), wanted)
    sums = [float(line.rpartition("=")[2]) for line in text.splitlines() if "column" in line]
    assert sums == wanted.ravel().tolist()


def test_demo_conv_with_a_named_filter_and_stride(said):
    text = said("demo", "conv", "--filter", "edge_2", "--stride", "2")
    assert "feature map, 2x2" in text
    assert text.count("column") == 4


def test_demo_pool_is_golden_b(said):
    text = said("demo", "pool")
    assert "max, 2x2:\n  6 8\n  3 4\n" in text
    assert "average, 2x2:\n  3.25 5.25\n     2    2\n" in text
    assert "sum, 2x2:\n  13 21\n   8  8\n" in text


def test_demo_relu(said):
    assert "max(x, 0), 1x3:\n  0 2 0\n" in said("demo", "relu", "--image", "-1 2 -3")


# ---- summary -----------------------------------------------------------------------------------


def test_summary_of_the_articles_network(said):
    text = said("summary", "lenet")
    assert "63,802" in text
    assert "418,600" in text


def test_summary_measures_a_step(said, capsys):
    text = said("summary", "lenet", "--measure", "--batch", "4")
    assert re.search(r"measured +\d+\.\d [kM]B at the peak of a training step at batch 4", text)
    assert main(["summary", "lenet", "--batch", "4"]) == 2
    assert "--batch is for --measure" in capsys.readouterr().err


def test_summary_with_other_channels_and_classes(said):
    text = said("summary", "lenet", "--input", "3,32,32", "--classes", "2")
    assert f"parameters      {63_802 + 2 * 6 * 25 - 8 * 101:,}" in text


def test_summary_of_an_impossible_input_prints_the_rows_before(capsys):
    assert main(["summary", "lenet", "--input", "1,28,28"]) == 2
    told = capsys.readouterr()
    assert told.err == (
        "gpuconv: summary: linear: x has 256 features, w expects 400 "
        "(x.shape=(1, 256), w.shape=(120, 400))\n"
    )
    assert "flat " in told.out
    assert "fc1" not in told.out
    assert main(["summary", "lenet", "--input", "1,4,4"]) == 2
    assert "does not fit an image of 4x4" in capsys.readouterr().err


# ---- filters -----------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (12, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", pixels.transpose(2, 0, 1)


def test_filters_draws_all_seven_on_each_channel(said, photo, tmp_path):
    path, pixels = photo
    out = tmp_path / "sheet.png"
    said("filters", path, "-o", out, "--size", "0", "--matrix", "0 1; -1 0")
    drawn = np.asarray(Image.open(out)).transpose(2, 0, 1)
    wanted = [pixels, *(to_pixels(apply(pixels, name)) for name in FILTERS)]
    wanted.append(to_pixels(apply(pixels, [[0, 1], [-1, 0]])))
    for picture in wanted:
        corner = np.lib.stride_tricks.sliding_window_view(drawn, picture.shape)[0]
        assert (corner == picture).all(axis=(2, 3, 4)).sum() >= 1


def test_filters_shrinks_and_grays(said, photo, tmp_path):
    out = tmp_path / "sheet.png"
    said("filters", photo[0], "-o", out, "--size", "6", "--gray")
    drawn = np.asarray(Image.open(out).convert("RGB"))
    assert (drawn[..., 0] == drawn[..., 1]).all()


def test_filters_refuses(refused, photo, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(photo[0].read_bytes()[:200])
    out = tmp_path / "sheet.png"
    assert "not a picture" in refused("filters", tmp_path / "text.png", "-o", out)
    assert "damaged" in refused("filters", tmp_path / "cut.png", "-o", out)
    assert "no folder" in refused("filters", photo[0], "-o", tmp_path / "none" / "s.png")
    assert "photo.png" in refused("filters", photo[0], "-o", photo[0] / "s.png")
    assert ".png or .jpg" in refused("filters", photo[0], "-o", tmp_path / "sheet.xyz")
    assert not out.exists()


# ---- doctor ------------------------------------------------------------------------------------


def test_doctor(said):
    text = said("doctor")
    for name in ("Python", "NumPy", "BLAS", "Numba", "CPU", "memory", "CuPy", "mnist"):
        assert f"\n{name} " in text
    assert text.splitlines()[-1].startswith("ready: cpu")


def test_doctor_keeps_what_a_failing_import_said(said, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libnvrtc.so.12: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    text = said("doctor")
    assert "its import fails: libnvrtc.so.12: cannot open" in text
    assert "gpuconv[cuda12]" in text


def test_doctor_says_what_is_broken_and_exits_with_0(said, monkeypatch):
    from gpuconv.ops import conv2d

    monkeypatch.setattr(conv2d, "_cpu", lambda *args: conv2d.definition(*args) + 1)
    monkeypatch.setattr(conv2d, "_accepted", {})  # no implementation chosen before
    text = said("doctor")
    assert "self-check     FAILS: RuntimeError: conv2d on cpu differs" in text
    assert text.splitlines()[-1].startswith("not ready: self-check")


def test_doctor_and_version_work_where_packages_are_missing():
    """Where the package is on the path but not installed, none of them may be there."""
    program = (
        "import sys; from gpuconv.cli import main\n"
        "names = 'numpy', 'numba', 'llvmlite', 'PIL', 'safetensors', 'rich', 'threadpoolctl'\n"
        "sys.modules.update(dict.fromkeys([*names, 'matplotlib', 'cuda', 'cupy']))\n"
        "print([main([c]) for c in ('doctor', '--version')], main(['summary', 'lenet']))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith(f"gpuconv {gpuconv.__version__}\n[0, 0] 2\n")
    for name in ("NumPy", "BLAS", "Numba", "CPU", "Pillow", "safetensors", "rich", "self-check"):
        assert f"\n{name:<15}FAILS: ModuleNotFoundError: " in done.stdout
    packages = "llvmlite numba numpy pillow rich safetensors threadpoolctl"
    assert f"mend: pip install --force-reinstall {packages}\n" in done.stdout
    assert done.stderr.startswith("gpuconv: import of numpy halted")
    assert done.stderr.endswith("; see: gpuconv doctor\n")
    assert done.stderr.count("\n") == 1


def test_help_is_quick():
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "gpuconv", "--help"], capture_output=True, check=True)
        took.append(time.perf_counter() - begin)
    assert min(took) < 1.0  # 0.1 s on an idle machine
