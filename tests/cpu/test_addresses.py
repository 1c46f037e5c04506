"""Compiled code may use an array's address only while Numba keeps the array: see moves.address."""

import ast
from pathlib import Path

import numpy as np
import pytest

import gpuconv


def compiled_functions(text):
    for function in nodes(ast.parse(text), ast.FunctionDef):
        decorators = map(ast.unparse, function.decorator_list)
        if any(name.startswith(("compiled", "inner")) for name in decorators):
            yield function


def nodes(tree, kind):
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


def names(*trees):
    return {node.id for tree in trees for node in nodes(tree, ast.Name)}


def makes_array(value):
    """Whether it calls a function of NumPy that is neither a ufunc nor a scalar's type."""
    called = [ast.unparse(call.func) for call in nodes(value, ast.Call)]
    found = [getattr(np, name[3:]) for name in called if name.startswith("np.")]
    return any(not isinstance(function, type | np.ufunc) for function in found)


def dangling(function):
    """Addresses of arrays made in the function that it may use after Numba has freed the array.

    Only in a loop that begins after the making may the array be used again, in the next pass.
    """
    assignments, loops = nodes(function, ast.Assign), nodes(function, ast.For | ast.While)
    for call in nodes(function, ast.Call):
        if ast.unparse(call.func) != "address":
            continue
        holding = [node.targets for node in assignments if call in ast.walk(node.value)]
        holders = {name for targets in holding for name in names(*targets)}
        for made in assignments:
            if makes_array(made.value) and names(*made.targets) & names(call.args[0]):
                kept = max(
                    loop.end_lineno if made.lineno < loop.lineno < call.lineno else 0
                    for loop in [*loops, function]
                )
                late = any(
                    node.id in holders and node.lineno > kept for node in nodes(function, ast.Name)
                )
                if late or kept < call.lineno:
                    yield ast.unparse(call)


def test_every_address_is_used_while_its_array_is_kept():
    seen = 0
    for file in Path(gpuconv.__file__).parent.rglob("*.py"):
        text = file.read_text()
        for function in compiled_functions(text) if "cpu.compiled import" in text else ():
            seen += 1
            assert list(dangling(function)) == [], f"{file}: {function.name}"
    assert seen > 50


FUNCTION = """
@compiled
def pack(w, out):
    lanes = np.zeros((len(w), 16), np.float32)
    {before}
    for i in range(3):
        {within}
        transpose(w, to)
    {after}
"""


@pytest.mark.parametrize(
    ("before", "within", "after", "expected"),
    [
        ("to = address(lanes) + 4", "pass", "pass", 1),  # once, it gave wrong convolutions
        ("pass", "to = address(lanes)", "copy(to, out)", 1),
        ("to = address(w)", "pass", "copy(address(lanes), out)", 1),
        ("pass", "lanes = np.empty(3); to = address(lanes)", "pass", 1),
        ("pass", "to = address(lanes[i]) + 4", "pass", 0),
        ("to = address(w)", "pass", "pass", 0),  # the caller keeps it
    ],
)
def test_the_check_sees_what_dangles(before, within, after, expected):
    text = FUNCTION.format(before=before, within=within, after=after)
    assert [len(list(dangling(function))) for function in compiled_functions(text)] == [expected]
