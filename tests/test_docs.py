"""The documentation is run: docstring examples, and the Python and the commands of its pages."""

import ast
import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import gpuconv

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(gpuconv.__path__, "gpuconv.")
    if not name.endswith("__main__") and not name.startswith("gpuconv.sim")
)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = re.compile(r"<!-- needs (\w+) -->")  # packages without which a page's blocks do not run
SLOW = "<!-- slow -->\n"  # before a block: it and the page's later blocks run in `make test-all`


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def prose(page):
    """The text of a page without its code blocks, tables, pictures and addresses."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"^\|.*$|^!\[.*$|<!--.*?-->", "", text, flags=re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", text)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if error.name is None or error.name.startswith("gpuconv"):
            raise
        pytest.skip(f"{name} needs {error.name}, which is not installed")
    examples = [(key, value) for key, value in vars(module).items() if hasattr(value, "definition")]
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(module, globs={**vars(module), "np": np}):
        runner.run(test)
    for key, operation in examples:  # finder sees functions and classes; an operation is an object
        if operation.__module__ == name:
            for test in finder.find(operation.definition, key, globs={**vars(module), "np": np}):
                runner.run(test)
    assert runner.failures == 0


def programs():
    """Each page's Python as one program; where a page has slow blocks, the quick part too."""
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        quick, *slow = page.read_text().split(SLOW, 1)
        parts = [re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in (quick, *slow)]
        lacking = [p for p in NEEDS.findall(page.read_text()) if not importlib.util.find_spec(p)]
        skip = [pytest.mark.skip(f"{p} is not installed") for p in lacking[:1]]
        if parts[0]:
            yield pytest.param(parts[0], id=name, marks=skip)
        if slow:
            yield pytest.param([*parts[0], *parts[1]], id=f"{name}-slow", marks=pytest.mark.slow)


@pytest.mark.parametrize("program", list(programs()))
def test_python_of_a_page_runs(program, tmp_path, monkeypatch, request):
    """The blocks of a page in order, as one reads them: later ones use names of earlier ones."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for number, block in enumerate(program):
        exec(compile(block, f"{request.node.name}, block {number}", "exec"), names)


def commands():
    """(page, words) for each command line in the pages' blocks."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in re.sub(r"\\\n", " ", block).splitlines():
                for command in re.sub(r"\s#.*", "", line).split("&&"):
                    if words := command.split():
                        yield page.relative_to(ROOT), words


@pytest.mark.parametrize(
    "name", sorted({words[1] for _, words in commands() if words[0] == "gpuconv"})
)
def test_commands_of_the_pages_and_their_options_exist(name, capsys):
    from gpuconv.cli.main import main

    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for page, words in commands():
        if words[:2] == ["gpuconv", name]:
            for word in words[2:]:
                assert not word.startswith("-") or word.split("=")[0] in text, (page, word)


def test_make_targets_and_scripts_of_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page, words in commands():
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, (page, words)
        elif words[0] == "python":
            script = next(word for word in words if word.endswith(".py"))
            assert (ROOT / script).exists(), (page, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (page.parent / path).exists(), path
    folders = "gpuconv|kernels|tests|benchmarks|docs|examples"
    for path in re.findall(rf"`((?:{folders})/[\w./*]*)`", text):
        # `make gpu-check` makes that folder; x stands for an operation's name
        if path != "benchmarks/results/" and Path(path).stem not in ("x", "test_x"):
            assert list(ROOT.glob(path.rstrip("/"))), path


def test_what_stands_in_place_of_cudnn_exists():
    rows = re.findall(
        r"^\| (`.*?) \| (`.*?) \| .*\|$", (ROOT / "docs" / "cupy.md").read_text(), re.M
    )
    assert len(rows) > 25
    for before, now in rows:
        names = re.findall(r"(ops|functional|nn|gpuconv)\.(\w+)", now)
        assert names, before
        for module, name in names:
            home = {"functional": "gpuconv.nn.functional", "gpuconv": "gpuconv"}
            found = importlib.import_module(home.get(module, f"gpuconv.{module}"))
            assert hasattr(found, name), now


def test_the_readme_is_short():
    assert len(prose(ROOT / "README.md").split()) <= 700


def test_tables_that_scripts_fill_have_their_markers():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in ("compare_torch", "compare_models", "errors"):
        begin, end = (text.index(f"<!-- {name} {word} -->") for word in ("begin", "end"))
        assert text[begin:end].count("\n|") > 5


def test_an_elementwise_operation_takes_the_files_that_contributing_names():
    """Leaky ReLU is written by that list alone: no other file of the product or tests names it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = {
        path.replace("x.", "leaky_relu.")
        for path in re.findall(r"^\| `([\w/.]+)` \|", text, re.MULTILINE)
    }
    naming = {
        str(path.relative_to(ROOT))
        for folder in ("gpuconv", "kernels", "tests")
        for path in (ROOT / folder).rglob("*.[pc]*")
        if path.suffix in (".py", ".cu", ".cuh") and path != Path(__file__)
        if re.search(r"leaky_?relu", path.read_text(), re.IGNORECASE)
    }
    assert naming == listed
    assert len(listed) <= 7


def lengths(path):
    """The lines of each function, class and method of a file by name, and of "all" of it."""
    text = path.read_text()
    found = {"all": text.count("\n")}
    if path.suffix == ".py":
        for node in ast.parse(text).body:
            for inner in (node, *getattr(node, "body", ())):
                if name := getattr(inner, "name", None):
                    name = name if inner is node else f"{node.name}.{name}"
                    found[name] = inner.end_lineno - inner.lineno + 1
    return found


def test_the_reading_path_is_as_long_as_it_says():
    text = (ROOT / "docs" / "reading-path.md").read_text()
    rows = re.findall(r"^\| \d+\. [^|]* \| `([^`]*)` \| ([^|]*) \| (\d+) \|$", text, re.MULTILINE)
    assert len(rows) > 10
    for path, parts, lines in rows:
        known = lengths(ROOT / path)
        total = sum(known[part] for part in parts.replace("`", "").split())
        assert abs(total - int(lines)) <= max(3, total // 7), (path, total)
    assert 1100 <= sum(int(lines) for *_, lines in rows) <= 1300
