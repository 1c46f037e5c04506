"""`gpuconv doctor --mpi`: what is missing is named, with the way to get it."""

import importlib

import pytest
import ranks

from gpuconv.cli import main
from gpuconv.distributed import examine


def test_what_is_missing_is_named(monkeypatch, capsys):
    def none(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(examine, "mpiexec", lambda: None)
    monkeypatch.setattr(importlib, "import_module", none)
    findings = {name: (text, lacks) for name, text, lacks in examine.examine()}
    for name in ("mpi4py", "mpiexec"):
        text, lacks = findings[name]
        assert lacks
        assert "pip install 'gpuconv[mpi]'" in text
    assert "two ranks" not in findings


@pytest.mark.slow
def test_two_ranks_are_tried(capsys):
    ranks.require_mpi()
    assert main(["doctor", "--mpi"]) == 0
    said = capsys.readouterr().out
    assert "started and heard each other in" in said
    assert said.endswith("ready: gpuconv train --ranks 2\n")
