"""Parser for PTX as NVRTC writes it: from text to functions of instructions with source lines.

Nested scopes (call sequences, inline assembly) are resolved here. A name declared in a scope is
made unique, so the result is one flat list of labels and instructions for each function.
"""

from __future__ import annotations

import re

from gpuconv.sim.program import Function, Program
from gpuconv.sim.ptx_body import Lines, read_body, read_variable, split, unreadable

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
    lines = Lines(text)
    program = Program({}, {}, {})
    position = 0
    while True:
        while position < len(text) and (text[position].isspace() or text[position] == ";"):
            position += 1
        if position >= len(text):
            return program
        position = _top_level(text, position, lines, program)


def _top_level(text: str, position: int, lines: Lines, program: Program) -> int:
    """Read one declaration at module level; returns the position of the next."""
    newline = text.find("\n", position)
    newline = len(text) if newline < 0 else newline
    line = text[position:newline]
    if re.match(r"\.(version|address_size|target)\b", line):
        return newline
    if match := re.match(r'\.file\s+(\d+)\s+"([^"]*)"', line):
        program.files[int(match.group(1))] = match.group(2)
        return newline
    if line.startswith(".section"):
        return text.index("}", position) + 1
    if (match := _HEADER.match(text, position)) is not None:
        return _function(text, match, lines, program)
    end = text.find(";", position)
    if end < 0:
        raise unreadable(repr(line.strip()), lines.at(position))
    variable = read_variable(text[position:end], lines.at(position))
    program.variables[variable.name] = variable
    return end + 1


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
    return read_body(text, end, lines, function)
