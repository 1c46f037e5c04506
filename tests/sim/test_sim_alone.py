"""The simulator is a package of its own: it needs no other part of gpuconv."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

FOLDER = Path(sim.__file__).parent
AFTERWARDS = """
import sys
print(*sorted(name for name in sys.modules if name.split(".")[0] == "gpuconv"))
print(sim.__file__)
"""


def test_the_readmes_example_runs_where_nothing_else_of_gpuconv_is(tmp_path):
    """In a copy of the folder, inside an empty package; every module of it is imported."""
    shutil.copytree(FOLDER, tmp_path / "gpuconv" / "sim")
    (tmp_path / "gpuconv" / "__init__.py").touch()
    example = re.search("```python\n(.*?)```", (FOLDER / "README.md").read_text("utf-8"), re.S)[1]
    modules = sorted(f"gpuconv.sim.{path.stem}" for path in FOLDER.glob("[a-z]*.py"))
    script = f"import {', '.join(modules)}\n{example}{AFTERWARDS}"
    (tmp_path / "example.py").write_text(script, "utf-8")  # its folder comes first in sys.path
    done = subprocess.run(
        [sys.executable, str(tmp_path / "example.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed, imported, place = done.stdout.splitlines()
    assert printed == "[3. 3. 3. 3.]"
    assert imported.split() == sorted(["gpuconv", "gpuconv.sim", *modules])
    assert place == str(tmp_path / "gpuconv" / "sim" / "__init__.py")
