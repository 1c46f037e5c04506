"""What the documentation says is run: docstring examples, the README's Python and commands."""

import doctest
import importlib
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


def blocks(language):
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
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


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_of_the_readme_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[number], f"README.md, block {number}", "exec"), {})


def test_commands_of_the_readme_exist():
    from gpuconv.cli.main import main

    commands = {
        line.split()[1]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("gpuconv ")
    }
    assert len(commands) > 6
    for command in commands:
        assert main([command, "--help"]) == 0, command


def test_files_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / path).exists(), path
