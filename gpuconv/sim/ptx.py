"""Parser for PTX as NVRTC writes it: from text to functions of instructions with source lines.

Nested scopes (call sequences, inline assembly) are resolved here. A name declared in a scope is
made unique, so the result is one flat list of labels and instructions for each function.
"""

from __future__ import annotations

import re

from gpuconv.sim.compile import include_paths
from gpuconv.sim.program import Function, Program
from gpuconv.sim.ptx_body import Lines, read_body, read_variable, split, unreadable

_SKIPPED = re.compile(
    r"(?:[\s;]+|\.(?:version|address_size|target|file)\b[^\n]*|\.section[^}]*\})*"
)
_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.S)
_HEADER = re.compile(
    r"(?P<link>(?:\.(?:visible|extern|weak)\s+)*)\.(?P<kind>entry|func)\s*(?:\((?P<results>[^)]*)\)\s*)?"
    r"(?P<name>[A-Za-z_$%][\w$]*)\s*(?:\((?P<params>[^)]*)\))?(?P<directives>[^{;]*)",
    re.S,
)


def _blank_comments(text: str) -> str:
    def keep(match: re.Match[str]) -> str:
        found = match.group()
        return found if found[0] == '"' else re.sub(r"[^\n]", " ", found)

    return _COMMENT.sub(keep, text)


def parse(text: str) -> Program:
    """The program in `text`. Raises UnsupportedError, with the PTX line, for unknown syntax."""
    text = _blank_comments(text.replace("\0", " "))
    lines, position = Lines(text), 0
    files = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)
    program = Program({}, {}, {int(number): path for number, path in files})
    while (position := _SKIPPED.match(text, position).end()) < len(text):  # type: ignore[union-attr]
        if (match := _HEADER.match(text, position)) is not None:
            position = _function(text, match, lines, program)
            continue
        declaration, semicolon, _ = text[position:].partition(";")
        if not semicolon:
            raise unreadable(repr(declaration.splitlines()[0].strip()), lines.at(position))
        variable = read_variable(declaration, lines.at(position))
        program.variables[variable.name] = variable
        position += len(declaration) + 1
    return program


def _function(text: str, match: re.Match[str], lines: Lines, program: Program) -> int:
    name = match["name"]
    end = match.end()
    if text[end : end + 1] == ";":
        return end + 1  # a declaration
    line = lines.at(match.start())
    directives = {}
    for word, numbers in re.findall(r"\.(\w+)\s*((?:\d+\s*,?\s*)*)", match["directives"]):
        directives[word] = tuple(int(n) for n in re.findall(r"\d+", numbers))
    params = [read_variable(p, line) for p in split(match["params"] or "")]
    results = [
        read_variable(p.replace(".reg", ".param"), line) for p in split(match["results"] or "")
    ]
    function = Function(name, match["kind"] == "entry", params, results, directives)
    program.functions[name] = function
    cuda = (*include_paths(), "__nv_nvrtc_builtin")
    of_cuda = {n for n, path in program.files.items() if path.startswith(cuda)}
    return read_body(text, end, lines, function, of_cuda)
