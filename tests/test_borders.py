"""The page uses names of the public interface alone: the last border that import-linter cannot see.

What may import what is in pyproject.toml, checked by `lint-imports`.
"""

import ast
import importlib
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "gpuconv" / "page"
PUBLIC = ("", ".checkpoint", ".data", ".explain", ".models", ".nn", ".ops", ".optim", ".train")
FOUNDATIONS = ("gpuconv.errors", "gpuconv.files")  # of every package


def imports(path):
    """(module, name) of every import of gpuconv outside the page, lazy ones too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


@pytest.mark.parametrize("path", sorted(PAGE.glob("*.py")), ids=lambda path: path.name)
def test_the_page_imports_public_names(path):
    public = {f"gpuconv{name}" for name in PUBLIC}
    for module, name in imports(path):
        if module.split(".")[0] != "gpuconv" or module in FOUNDATIONS:
            continue
        if module.startswith("gpuconv.page") or (module, name) == ("gpuconv", "page"):
            continue
        assert module in public, f"{module} is not public"
        found = importlib.import_module(module)
        assert name in getattr(found, "__all__", dir(found)), f"{module}.{name} is not public"


def test_public_names_exist():
    for name in PUBLIC:
        module = importlib.import_module(f"gpuconv{name}")
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{module.__name__}.{public}"
