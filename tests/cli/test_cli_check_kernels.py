"""`gpuconv check-kernels`: findings as text, JSON and SARIF; counts; one line for wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from gpuconv.cli.main import main

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

AXPY = """// y = a x + y
extern "C" __global__ void axpy(float* y, const float* x, float a, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = a * x[i] + y[i];
}
"""
SUMS = """__global__ void sums(float* y, const float* x, int n)
{
    __shared__ float s[64];
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
    s[threadIdx.x] = sum;
    __syncthreads();
    for (int o = blockDim.x / 2; o; o /= 2) {
        if (threadIdx.x < o) s[threadIdx.x] += s[threadIdx.x + o];
        BARRIER
    }
    if (threadIdx.x == 0) y[blockIdx.x] = s[0];
}
"""
RIGHT, WRONG = SUMS.replace("BARRIER", "__syncthreads();"), SUMS.replace("BARRIER", "")
LAUNCH_SUMS = """import numpy as np

def launch(run):
    x = np.ones((3, 100), np.float32)
    y = run.empty(3)
    run("sums", 3, 64, [y, x, 100])
    assert (y == 100).all(), y
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("axpy.cu", AXPY), ("right.cu", RIGHT), ("wrong.cu", WRONG)):
        (tmp_path / name).write_text(text)
    (tmp_path / "sums.py").write_text(LAUNCH_SUMS)
    return tmp_path


def run(capsys, *words):
    """(exit code, standard output, standard error)"""
    code = main(["check-kernels", *words])
    return code, *capsys.readouterr()


def test_a_right_kernel_without_a_launch_file(here, capsys):
    code, out, err = run(capsys, "axpy.cu", "--count")
    assert (code, err) == (0, "")
    assert (
        "this was run, which may not be what is meant: axpy: n = 997, y, x: 997 elements each"
        in out
    )
    assert "axpy.cu: 0 errors, 0 warnings; 1 launch of axpy" in out
    assert "no times" in out
    assert "global loads: 64 requests, 3.91 sectors each, 7,976 bytes asked for, 8,000 moved" in out
    assert "1,994 flop (997 FMA" in out  # nvcc's default fuses the product and the sum


def test_a_missing_barrier_is_named_with_both_lines(here, capsys):
    code, out, err = run(capsys, "wrong.cu", "--launch", "sums.py")
    assert (code, err) == (1, "")
    head, source, *_ = out.splitlines()
    assert head == "error: race shared: wrong.cu:9: sums"
    assert source == "      9 | if (threadIdx.x < o) s[threadIdx.x] += s[threadIdx.x + o];"
    assert "the other party: thread" in out
    assert "mend: put __syncthreads() between the accesses" in out
    assert run(capsys, "right.cu", "--launch", "sums.py")[0] == 0


def test_json_and_sarif(here, capsys):
    code, out, _ = run(capsys, "wrong.cu", "--launch", "sums.py", "--format", "json")
    report = json.loads(out)
    (finding,) = report["findings"]
    assert code == 1
    assert (finding["kind"], finding["severity"], finding["kernel"]) == (
        "race_shared",
        "error",
        "sums",
    )
    assert (finding["file"], finding["line"], finding["other"]["line"]) == (
        "wrong.cu",
        9,
        "wrong.cu:9",
    )
    assert report["launches"] == [{"kernel": "sums", "grid": 3, "block": 64, "shared": 0}]
    words = ["wrong.cu", "--launch", "sums.py", "--format", "sarif", "--output", "found.sarif"]
    assert run(capsys, *words) == (1, "", "")
    sarif = json.loads((here / "found.sarif").read_text())
    (result,) = sarif["runs"][0]["results"]
    assert sarif["version"] == "2.1.0"
    assert (result["ruleId"], result["level"]) == ("race_shared", "error")
    place = result["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("wrong.cu", 9)
    assert result["relatedLocations"][0]["physicalLocation"]["region"]["startLine"] == 9


# Properties that SARIF 2.1.0 (OASIS, 27 March 2020) requires of its objects.
SARIF_REQUIRES = {
    "log": ("version", "runs"),
    "run": ("tool",),
    "tool": ("driver",),
    "driver": ("name",),
    "rule": ("id",),
    "result": ("message",),
    "message": ("text",),
}


def test_sarif_has_what_the_standard_requires(here, capsys, monkeypatch):
    (here / "own name.cu").write_text(WRONG)
    (here / "elsewhere").mkdir()
    words = ["--launch", str(here / "sums.py"), "--format", "sarif"]
    for name, folder in (("own name.cu", here), (str(here / "own name.cu"), here / "elsewhere")):
        monkeypatch.chdir(folder)
        log = json.loads(run(capsys, name, *words)[1])
        (one,) = log["runs"]
        (result,) = one["results"]
        driver = one["tool"]["driver"]
        objects = {"log": log, "run": one, "tool": one["tool"], "driver": driver}
        objects |= {"rule": driver["rules"][0], "result": result, "message": result["message"]}
        for what, names in SARIF_REQUIRES.items():
            assert set(names) <= objects[what].keys()
        assert log["version"] == "2.1.0"
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        for location in (*result["locations"], *result["relatedLocations"]):
            place = location["physicalLocation"]
            assert place["region"]["startLine"] == 9
            uri = urlsplit(place["artifactLocation"]["uri"])  # a URI reference (RFC 3986)
            assert uri.scheme == ("file" if Path(name).is_absolute() else "")
            assert unquote(uri.path) == name
            assert " " not in uri.path


def test_listings(here, capsys):
    words = ("right.cu", "--launch", "sums.py", "--format", "json", "--listing")
    code, out, _ = run(capsys, *words, "counts.html")
    counts = json.loads(out)["counters"]["sums"]
    assert code == 0
    # three blocks of two warps, log2(64) + 1 barriers
    assert counts["total"]["barriers"] == 3 * 2 * 7
    assert sum(line["flop"] for line in counts["lines"]) == counts["total"]["flop"]
    html = (here / "counts.html").read_text()
    assert "if (threadIdx.x &lt; o)" in html
    assert "no times" in html
    run(capsys, *words, "counts.txt")
    lines = (here / "counts.txt").read_text().splitlines()
    assert len(lines) == 2 + len(RIGHT.splitlines())
    store = next(line for line in lines if "y[blockIdx.x] = s[0]" in line)
    assert store.split(" | ")[0].split()[1:3] == ["3", "3"]  # a sector and a wavefront each


HEAD = "import numpy as np\nx, y = np.ones((2, 997), np.float32)\n"


def launching(call):
    return f"{HEAD}def launch(run):\n    {call}\n"


FILES = {
    "garbage": ("bad.cu", b"\x7fELF\x02\x00\xff\xfe", "bad.cu: is not text: byte 6"),
    "no kernel": (
        "bad.cu",
        b"__device__ int n;",
        "bad.cu: has no kernel: write a __global__ function",
    ),
    "empty": ("bad.cu", b"", "bad.cu: has no kernel"),
    "syntax": ("bad.cu", AXPY.replace("= a", "= b").encode(), "bad.cu(6): error: "),
    "two integers": (
        "bad.cu",
        b"__global__ void k(int* y, int n, int m) { y[n] = m; }",
        "bad.cu: how to launch k cannot be guessed (it takes 2 integers): write a file with "
        "`def launch(run): run('k', grid=..., block=..., args=[y, n, m])`",
    ),
    "own type": (
        "bad.cu",
        b"struct P { int n; };\n__global__ void k(int* y, P p) { y[0] = p.n; }",
        "the type of 'P p' is not known",
    ),
    "host code": (
        "bad.cu",
        b"__global__ void k(int* y) { y[0] = 1; }\n\nint main() { return 0; }",
        "put host code between #ifndef __CUDACC_RTC__ and #endif",
    ),
    "recursion": (
        "bad.cu",
        b"__device__ __noinline__ int f(int n) {\n return n < 2 ? n : f(n - 1) + f(n - 2); }\n"
        b"__global__ void k(int* y) { y[0] = f(y[1]); }",
        "bad.cu:2: recursion (f) is not modelled by the simulator",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_files_get_one_line(case, here, capsys):
    name, content, expected = FILES[case]
    (here / name).write_bytes(content)
    code, out, err = run(capsys, name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err


LAUNCHES = {
    'run("axpi", 4, 256, [y, x, 2, 997])': "axpy.cu: no kernel 'axpi', it has: axpy",
    'run("axpy", 4, 256, [y, x, 2])': (
        "axpy(float* y, const float* x, float a, int n) takes 4 arguments (axpy.cu:2), got 3"
    ),
    'run("axpy", 4, 256, [y, x.astype(float), 2, 997])': (
        "axpy: argument 1, 'const float* x' (axpy.cu:2): got an array of float64, give one of "
        "float32: x.astype(numpy.float32)"
    ),
    'run("axpy", 4, 256, [y, x.astype(int), 2, 997])': "got an array of int64, give one of float32",
    'run("axpy", 4, 256, [y[::2], x, 2, 498])': "got a view of shape (499,) with gaps",
    'run("axpy", 4, 256, [y, 3.0, 2, 997])': "got 3.0 (float), give a NumPy array",
    'run("axpy", 4, 256, [y, None, 2, 997])': "got None (NoneType), give a NumPy array",
    'run("axpy", 4, 256, [y, x, x, 997])': "'float a' (axpy.cu:2): got an array of float32",
    'run("axpy", 4, 256, [y, x, 2, 997.5])': "'int n' (axpy.cu:2): got 997.5, give an integer",
    'run("axpy", 4, 256, [y, x, "2", 997])': "argument 2 is f32: give a number, got '2'",
    'run("axpy", 4, 256, [y, x, 2, 1 << 40])': "does not fit",
    'run("axpy", 4, 2000, [y, x, 2, 997])': "block.x must be at most 1024, got 2000",
    'run("axpy", 4, (32, 64), [y, x, 2, 997])': "a block has at most 1024 threads",
    'run("axpy", 0, 256, [y, x, 2, 997])': "grid.x must be at least 1, got 0",
    'run("axpy", 1, 1, [y, x, 2, 997], shared=1 << 20)': "shared memory",
    "run(undefined)": "NameError: name 'undefined' is not defined",
    "pass": "launch(run) launches nothing",
    "assert 1 == 2, 'not equal'": "AssertionError: not equal",
}


@pytest.mark.parametrize("call", LAUNCHES)
def test_wrong_launches_get_one_line_with_the_launch_files_line(call, here, capsys):
    (here / "l.py").write_text(launching(call))
    code, out, err = run(capsys, "axpy.cu", "--launch", "l.py")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("gpuconv: l.py:4: " if call != "pass" else "gpuconv: l.py: ")
    assert LAUNCHES[call] in err


def test_wrong_launch_files_get_one_line(here, capsys):
    for text, expected in (
        ("def launch(run:\n", "l.py:1: '(' was never closed"),
        ("launch = 3\n", "l.py: has no function launch(run)"),
        ("\nimport no_such_module\n", "l.py:2: ModuleNotFoundError: No module named"),
    ):
        (here / "l.py").write_text(text)
        code, out, err = run(capsys, "axpy.cu", "--launch", "l.py")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert expected in err
    for words, expected in (
        (("no.cu",), "no.cu"),
        (("axpy.cu", "--launch", "no.py"), "no.py"),
        (("axpy.cu", "--format", "xml"), "xml"),
    ):
        code, out, err = run(capsys, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert expected in err


def test_helper_for_tests(here):
    from gpuconv.sim.checking import require_clean

    y = np.zeros(40, np.float32)

    def launch(run):
        y[:] = 1
        run("axpy", 1, 64, [y[10:20], np.full(10, 2, np.float32), 3, 10])  # a view of y
        run("axpy", 1, 64, [y, y, 1, 40])  # and all of it

    report = require_clean("axpy.cu", launch)
    assert len(report.launches) == 2
    expected = np.full(40, 2.0)
    expected[10:20] = 14
    assert np.array_equal(y, expected)
    with pytest.raises(AssertionError, match="uninitialised"):
        require_clean("axpy.cu", lambda run: run("axpy", 1, 64, [run.empty(9), y, 1, 9]))

    def tests_the_result(run):
        y = run.empty(3)
        run("sums", 3, 64, [y, np.ones(300, np.float32), 100])
        assert (y == 100).all(), y

    with pytest.raises(AssertionError, match=r"race shared: wrong\.cu:9"):
        require_clean("wrong.cu", tests_the_result)


TICKETS = """#include "first.h"
__device__ int count = FIRST;
__global__ void tickets(int* y)
{
    y[atomicAdd(&count, 1) - FIRST] = threadIdx.x;
}
"""


def test_each_order_begins_with_the_variables_initial_values(here, capsys):
    (here / "tickets.cu").write_text(TICKETS)
    (here / "own").mkdir()
    (here / "own" / "first.h").write_text("#define FIRST 5\n")
    (here / "l.py").write_text(
        "def launch(run):\n  y = run.empty(64, int)\n  run('tickets', 1, 64, [y.astype('i4')])\n"
    )
    words = "tickets.cu", "--launch", "l.py"
    assert run(capsys, *words, "-I", "own")[::2] == (0, "")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert 'tickets.cu(1): catastrophic error: cannot open source file "first.h"' in err


def test_facts_and_estimates_are_called_so(here, capsys):
    from gpuconv.sim import SimError, facts

    try:
        facts.tool("nvdisasm"), facts.tool("cuobjdump")
    except SimError as missing:
        pytest.skip(str(missing))
    code, out, _ = run(capsys, "axpy.cu", "--arch", "sm_80", "--card", "a100")
    assert code == 0
    assert "axpy on sm_80, from the compiler: " in out
    assert "a multiprocessor holds 8 blocks of 256 threads, 64 of 64 warps" in out
    # (8000 + 4000) bytes at 1555 GB/s
    assert "estimate: a100, by its data sheet, needs at least 0.00772 us for this (memory)" in out
    assert run(capsys, "axpy.cu", "--arch", "sm_1")[0] == 2


KINDS = """#include <stdio.h>
#include <cstdint>
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include "scale.h"
namespace mine {
__global__ void vectors(float4* y, const double2* x, const __half* h, bool* b, int64_t n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = make_float4(x[i].x, x[i].y, SCALE * __half2float(h[i]), b[i]);
}
}
template <class T> __global__ void __launch_bounds__(256) copies(T* y, const T* x, size_t n)
{
    size_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}
template __global__ void copies(float*, const float*, size_t);
__global__ void nothing(float* unused) {}
"""


def test_kernels_of_all_kinds_without_a_launch_file(here, capsys):
    (here / "kinds.cu").write_text(KINDS.replace("class T", "class U").replace("T*", "U*"))
    (here / "scale.h").write_text("#define SCALE 2.0f\n")
    code, out, err = run(capsys, "kinds.cu")
    assert code == 2
    assert "the type of 'U* y' is not known" in err
    (here / "kinds.cu").write_text(KINDS.split("template <class")[0] + KINDS[-42:])
    code, out, err = run(capsys, "kinds.cu")
    assert (code, err) == (0, "")
    assert "2 launches of nothing, vectors" in out
    (here / "l.py").write_text(
        HEAD + "def launch(run):\n    run('copies', 4, 256, [y, x, 997])\n    assert (y == x).all()"
    )
    (here / "kinds.cu").write_text(KINDS)
    code, out, err = run(capsys, "kinds.cu", "--launch", "l.py")
    assert (code, err) == (0, "")


STRUCTURE = """struct P { float* y; const float* x; int n; double scale; bool twice; };
__global__ void scaled(P p, int first)
{
    int i = first + threadIdx.x;
    if (i < p.n) p.y[i] = p.x[i] * p.scale * (1 + p.twice);
}
"""
LAUNCH_STRUCTURE = """import numpy as np

def launch(run):
    x = np.arange(40, dtype=np.float32)
    y = run.empty(40)
    run("scaled", 1, 64, [(y, x, N, np.float64(3), True), 0])
    assert (y == 6 * x).all()
"""


def test_a_structure_takes_a_tuple_of_its_members(here, capsys):
    (here / "p.cu").write_text(STRUCTURE)
    (here / "l.py").write_text(LAUNCH_STRUCTURE.replace("N,", "40,"))
    assert run(capsys, "p.cu", "--launch", "l.py")[::2] == (0, "")
    (here / "l.py").write_text(LAUNCH_STRUCTURE.replace("N,", "41,"))
    code, out, err = run(capsys, "p.cu", "--launch", "l.py")
    assert (code, err) == (1, "")
    assert "error: bounds global: p.cu:5: scaled" in out
    (here / "p.cu").write_text(STRUCTURE.replace("int i = first", "int i = 0 * first"))
    (here / "l.py").write_text(LAUNCH_STRUCTURE.replace("N,", "40,").replace("1, 64", "2, 64"))
    code, out, err = run(capsys, "p.cu", "--launch", "l.py")
    assert "same value: p.cu:5: scaled: p\n" in out
    assert "race on 4 bytes at element 0 of an array of p: " in out
    for members, expected in (
        (
            "(y, x)",
            "argument 0 is a structure of 40 bytes, these members take 16: an int counts as",
        ),
        ("y", "argument 0, 'P p' (p.cu:2): got an array of float32, give a number (a structure"),
        ("5", "argument 0 is a structure: give its 40 bytes, or a tuple of its members, got int"),
        ("(y, x, 1 << 40)", "member 2: 1099511627776 has more than 32 bits, use numpy.int64"),
        ("(y, 'x')", "member 1: give an array or a number, got str"),
    ):
        text = LAUNCH_STRUCTURE.replace("(y, x, N, np.float64(3), True)", members)
        (here / "l.py").write_text(text)
        code, out, err = run(capsys, "p.cu", "--launch", "l.py")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert expected in err


def test_an_endless_loop_ends(here, capsys):
    """In one order, after the time-out, with the line at which it was."""
    endless = "__global__ void spin(int* y) {\n  while (((volatile int*)y)[0] >= 0)\n    ;\n}\n"
    (here / "spin.cu").write_text(endless)
    code, out, err = run(capsys, "spin.cu", "--timeout", "0.2")
    assert (code, err) == (1, "")
    assert re.search(r"error: (timeout|deadlock): spin\.cu:[23]: spin", out), out


GUIDE = Path(__file__).parents[2] / "docs" / "check-kernels.md"


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """A folder with the files of the guide, whose first lines have their names."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```\w+\n((?://|#) (\w+\.\w+)\n.*?)```", GUIDE.read_text(), re.S)
    for text, name in blocks:
        (tmp_path / name).write_text(text)
    return {name: text for text, name in blocks}


def test_the_guides_first_kernel(guide, capsys):
    """What the guide shows is what is printed, but for the ends of long lines."""
    code, out, _ = run(capsys, "sums.cu", "--launch", "launch_sums.py")
    shown = re.search(r"```text\n(.*?)```", GUIDE.read_text(), re.S)[1]
    assert code == 1
    for line, printed in zip(shown.splitlines(), out.splitlines(), strict=True):
        assert printed.startswith(line.removesuffix("...").rstrip()), printed
    mended = (
        guide["sums.cu"].replace("<= columns", "< columns").replace("half /= 2)", "half /= 2) {")
    )
    mended = mended.replace(" + half];", " + half];\n        __syncthreads();\n    }")
    Path("sums.cu").write_text(mended)
    assert run(capsys, "sums.cu", "--launch", "launch_sums.py")[0] == 0


def test_the_guides_table_of_counts(guide, capsys):
    words = "transpose.cu", "--launch", "launch_transpose.py", "--count", "--format", "json"
    shown = {
        line.split("|")[1].strip(): [
            int(c.replace(",", "")) for c in line.split("|")[2:] if c.strip()
        ]
        for line in GUIDE.read_text().splitlines()
        if line.startswith(("| naive", "| tiled"))
    }
    for pitch in (32, 33):
        code, out, _ = run(capsys, *words, "-D", f"PITCH={pitch}")
        assert code == 0
        counted = json.loads(out)["counters"]
        for kernel, name in (("naive", "naive"), ("tiled", f"tiled, `PITCH={pitch}`")):
            c = counted[kernel]["total"]
            requests, sectors = c["store_requests"], c["store_sectors"]
            found = [requests, sectors // requests, 32 * sectors]
            if c["shared_requests"]:
                found += [c["shared_wavefronts"], c["shared_conflicts"]]
            assert shown[name] == found
