"""An extension for Griffe, which mkdocstrings reads the code with: our docstrings as Markdown.

A docstring here is plain text. Its examples (`>>>`) become code blocks, the lines that begin with a
parameter's name become a list, and indented blocks, which are code, keep their lines.
"""

import re
import textwrap

import griffe

PARAMETER = re.compile(r"^((?:\w|\\_)+(?:, (?:\w|\\_)+)*): ")
MARKUP = re.compile(r"(?<!\*)\*(?!\*)|[_<\[\]]")  # ** stays: bold


class PlainText(griffe.Extension):
    """Rewrite every docstring once the whole tree of objects has been read."""

    def on_object(self, *, obj, loader, **kwargs):
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    paragraphs = re.split(r"\n[ \t]*\n", text)
    return "\n\n".join(map(paragraph, paragraphs))


def paragraph(text: str) -> str:
    lines = text.splitlines()
    example = next((i for i, line in enumerate(lines) if line.lstrip().startswith(">>> ")), None)
    if example is not None:
        code = textwrap.dedent("\n".join(lines[example:]))
        fenced = f"```pycon\n{code}\n```"
        return "\n\n".join(filter(None, [paragraph("\n".join(lines[:example])), fenced]))
    if all(line.startswith("    ") for line in lines):
        return text  # code
    return "\n".join(items([escaped(line) for line in lines]))


def escaped(line: str) -> str:
    """The line with characters that Markdown would take for markup, outside of `code`."""
    parts = line.split("`")
    parts[::2] = [MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts)


def items(lines: list[str]) -> list[str]:
    """`x, w: meaning` as an item of a list; lines that follow belong to it."""
    done, inside = [], False
    for line in lines:
        if PARAMETER.match(line):
            if not inside:
                done.append("")
            inside = True
            done.append(PARAMETER.sub(r"- **\1**: ", line))
        else:
            done.append(f"    {line.strip()}" if inside else line)
    return done
