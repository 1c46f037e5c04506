"""A hook of MkDocs: `<!-- members of gpuconv.ops -->` becomes the reference of a package's names.

Where a function has the name of its file, as `gpuconv.ops.conv2d`, mkdocstrings takes the name for
the file. So each name of `__all__` is written out with the module that the package imports it from.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, **_) -> str:
    return re.sub(r"<!-- members of ([\w.]+) -->", lambda found: members(found[1]), markdown)


def members(package: str) -> str:
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    homes, exported = {}, []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            exported = [element.value for element in node.value.elts]
    found = [(name, homes.get(name, package)) for name in exported]
    modules = {path.stem for path in (ROOT / package.replace(".", "/")).glob("*.py")}
    return "\n".join(
        f"::: {home}.{name}\n" for name, home in found if home != package or name not in modules
    )
