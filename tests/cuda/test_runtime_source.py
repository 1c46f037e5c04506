"""Kernel sources: includes inlined with the right line numbers, signatures read as declared."""

import re

import numpy as np
import pytest

from gpuconv.cuda import source

HEADER_KEYS = [
    "Math",
    "Source",
    "Layout",
    "Geometry",
    "Traffic",
    "Floor",
    "Order",
    "Limits",
    "Not here",
]
DEFINES = {
    "LABEL": "long long",
    "TAP": "unsigned char",
    "PIXEL": "float",
    "ELEMENT": "unsigned short",
    "SOURCE": "float",
}
DOUBLES = "clip.cu"  # sums in double precision, as no other kernel


def test_includes_are_inlined_once_with_line_numbers(tmp_path):
    (tmp_path / "a.cu").write_text('// a\n#include "b.cuh"\n#include "c.cuh"\nint a;\n')
    (tmp_path / "b.cuh").write_text('#pragma once\n#include "c.cuh"\nint b;\n')
    (tmp_path / "c.cuh").write_text("#pragma once\nint c;\n")
    text = source.text("a.cu", tmp_path)
    assert text.count("int c;") == 1
    assert "#include" not in text
    assert "#pragma once" not in text
    file, line, found = "", 0, {}
    for row in text.splitlines():
        marker = re.fullmatch(r'#line (\d+) "(.+)"', row)
        if marker:
            line, file = int(marker[1]), marker[2]
        else:
            found[row] = (file, line)
            line += 1
    assert found["int a;"] == ("a.cu", 4)
    assert found["int b;"] == ("b.cuh", 3)
    assert found["int c;"] == ("c.cuh", 2)


def test_a_missing_file_or_include_is_named(tmp_path):
    (tmp_path / "a.cu").write_text('\n#include "gone.cuh"\n')
    with pytest.raises(ValueError, match=r'a\.cu:2: includes "gone\.cuh", which is not in'):
        source.text("a.cu", tmp_path)
    with pytest.raises(ValueError, match=r"no kernel file 'b\.cu' in .*, which has: a\.cu"):
        source.text("b.cu", tmp_path)
    with pytest.raises(ValueError, match="no kernel file"):
        source.text("../pyproject.toml")


def test_signatures_are_read_as_declared():
    text = """
    // extern "C" __global__ void commented(int n)
    extern "C" __global__ void __launch_bounds__(256, (2 + 1) * 2) f(
        float* __restrict__ y, const float *x, const LABEL* labels, // the labels
        unsigned char* flags, int n, unsigned m, long long count, float a) {}
    extern "C" __global__ void g() {}
    """
    found = source.signatures(text, DEFINES)
    assert list(found) == ["f", "g"]
    assert [(p.name, p.dtype.name, p.pointer, p.written) for p in found["f"].parameters] == [
        ("y", "float32", True, True),
        ("x", "float32", True, False),
        ("labels", "int64", True, False),
        ("flags", "uint8", True, True),
        ("n", "int32", False, False),
        ("m", "uint32", False, False),
        ("count", "int64", False, False),
        ("a", "float32", False, False),
    ]
    assert found["g"].parameters == ()


@pytest.mark.parametrize("kind", ["size_t", "float**", "Geometry", "bool*"])
def test_a_type_that_no_launch_can_pass_is_refused(kind):
    with pytest.raises(ValueError, match=r"f: parameter .* has a type that launches do not know"):
        source.signatures(f'extern "C" __global__ void f({kind} x) {{}}')


@pytest.mark.parametrize("file", source.files())
def test_every_kernel_file_declares_kernels_and_opens_with_its_claims(file):
    plain = (source.folder() / file).read_text()
    assert plain.startswith(f"/*\n{file}: ")
    header = plain[: plain.index("*/")]
    found = re.findall(r"^(Math|[A-Z][a-z]+(?: here)?) {2,}\S", header, re.MULTILINE)
    assert [key for key in found if key != "Macros"] == HEADER_KEYS
    kernels = source.kernels(file, tuple(DEFINES.items()))
    assert kernels
    assert plain.count("__global__") == len(kernels)
    doubles = [p.name for k in kernels.values() for p in k.parameters if p.dtype == np.float64]
    assert not doubles or file == DOUBLES


@pytest.mark.parametrize("path", sorted(source.folder().rglob("*.cu*")), ids=lambda p: p.name)
def test_style_of_the_sources(path):
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "\t" not in text
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    number = r"(?<![\w.])(?:\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)(?![\dfFeE.])"
    allowed = "atomicAdd" if path.name == DOUBLES else rf"{number}|\bdouble\b|atomicAdd"
    assert not re.search(allowed, code), "no doubles"


def test_one_set_of_options_for_all_compilers():
    from gpuconv.sim import compile as simulator

    assert set(source.OPTIONS) <= {option.replace("--std", "-std") for option in simulator.OPTIONS}
