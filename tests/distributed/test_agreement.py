"""A rank with other software, files or settings is refused, and the line names what differs."""

import shutil
from pathlib import Path

import pytest

import gpuconv
from gpuconv.distributed import agreement
from gpuconv.errors import DataError


class Gathered:
    """The facts of several ranks, for the one that asks."""

    def __init__(self, *others):
        self.others = others

    def all_gather(self, value):
        return [value, *((f"machine{n}", facts) for n, facts in enumerate(self.others, 1))]


OWN = {"numpy": "2.4.6", "data": {"images_crc32": 7, "size": [32, 32]}}
SAME = {"numpy": "2.4.6", "data.images' checksum": 7, "data.size": [32, 32]}


def test_equal_facts_pass():
    agreement.require_equal(Gathered(SAME, SAME), OWN)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"numpy": "1.26.0"}, "numpy is 1.26.0, not 2.4.6"),
        ({"numpy": None}, "numpy is None, not 2.4.6"),
        ({"data.images' checksum": 8}, "data.images' checksum is 8, not 7"),
        ({"data.labels": 3}, "data.labels is 3, not None"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "c is 3, not None (and 1 more)"),
    ],
)
def test_the_first_rank_that_differs_is_named(change, text):
    with pytest.raises(DataError) as raised:
        agreement.require_equal(Gathered(SAME, {**SAME, **change}, {**SAME, **change}), OWN)
    message = str(raised.value)
    assert message.startswith("rank 2 on machine2 differs from rank 0: ")
    assert text in message
    assert "\n" not in message


def test_the_code_is_every_python_file_and_kernel(tmp_path, monkeypatch):
    package = Path(gpuconv.__file__).parent
    for folder in ("gpuconv", "kernels"):
        shutil.copytree(
            package.parent / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    monkeypatch.setattr(gpuconv, "__file__", str(tmp_path / "gpuconv" / "__init__.py"))
    monkeypatch.setattr(agreement.source, "folder", lambda: tmp_path / "kernels")
    code = agreement.code.__wrapped__
    original = code()
    for name in ("gpuconv/shapes.py", "kernels/relu.cu", "gpuconv/cuda/__init__.py"):
        path = tmp_path / name
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert code() != original
        path.write_bytes(before)
    assert code() == original


def test_versions_are_those_of_the_packages():
    numpy = pytest.importorskip("numpy")
    assert agreement.software()["numpy"] == numpy.__version__
