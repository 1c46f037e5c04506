"""Communicators: what the ranks get, and what one process gets alone."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import ranks

from gpuconv import distributed
from gpuconv.distributed import LocalCommunicator, cards, part
from gpuconv.errors import DeviceError

# Run on every rank: sums in the order of the ranks, to the bit, also of several at once.
CALLS = """
import numpy as np
from gpuconv import distributed
c = distributed.init()
assert distributed.current() is c and c.size > 1
sizes = [(1, "f4"), (7, "f8"), (100003, "f4"), (0, "f4"), (3, "f8"), (2000, "f4")]
def arrays(rank):
    rng = np.random.default_rng(rank)
    return [rng.standard_normal(n).astype(t) for n, t in sizes]
own, every = arrays(c.rank), [arrays(rank) for rank in range(c.size)]
under_way = [c.start_all_reduce(a) for a in own]
for one in under_way[::-1]:
    one.wait()
    assert one.test()
for i, a in enumerate(own):
    total = every[0][i].copy()
    for other in every[1:]:
        total = total + other[i]
    np.testing.assert_array_equal(a, total)
x = np.full((3, 2), c.rank, "f4")
c.broadcast(x, c.size - 1)
assert (x == c.size - 1).all()
assert c.all_gather("x" * c.rank) == ["x" * rank for rank in range(c.size)]
assert (c.gather_numbers((c.rank, 1 / 3)) == [[r, 1 / 3] for r in range(c.size)]).all()
assert c.from_root(lambda: c.rank + 5) == 5
def fail():
    if c.rank == c.size - 1:
        raise ValueError("of the last")
try:
    c.agreed(fail)
except ValueError as error:
    assert str(error) == "of the last"
else:
    raise SystemExit("no error")
try:
    c.all_reduce(np.zeros((4, 4))[:, 1])
except ValueError as error:
    assert "C-contiguous" in str(error)
asked = []
c.check = lambda: asked.append(1)
if c.rank:
    __import__("time").sleep(0.1)
c.barrier()
assert asked or c.rank
print("done")
"""


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_calls_between_ranks(count):
    assert ranks.run_ranks(count, "-c", CALLS).count("done") == count


def test_alone():
    one = LocalCommunicator()
    x = np.ones(3)
    one.all_reduce(x)
    one.broadcast(x)
    assert x.tolist() == [1, 1, 1]
    assert one.all_gather("a") == ["a"]
    assert one.from_root(lambda: 5) == 5
    with pytest.raises(KeyError):
        one.agreed(lambda: {}["a"])


@pytest.mark.parametrize(("count", "size"), [(10, 4), (3, 4), (0, 2), (64, 1)])
def test_parts_are_all_and_even(count, size):
    parts = [range(count)[part(count, rank, size)] for rank in range(size)]
    assert [i for each in parts for i in each] == list(range(count))
    lengths = [len(each) for each in parts]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_nobody_asked_for_ranks():
    """MPI is not imported, and `init` is this process alone."""
    code = "import sys, gpuconv.cli, gpuconv.train; from gpuconv import distributed;"
    code += "assert distributed.init().size == 1; assert 'mpi4py' not in sys.modules"
    known = {k: v for k, v in os.environ.items() if k not in distributed.RANK_VARIABLES}
    subprocess.run([sys.executable, "-c", code], check=True, env=known)


def test_a_rank_without_mpi(monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.delitem(sys.modules, "gpuconv.distributed.mpi", raising=False)
    with pytest.raises(DeviceError, match=r"MPICH are needed; pip install 'gpuconv\[mpi\]'"):
        distributed.init()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([("a", None)] * 3, ["0", "1", "2"]),
        ([("a", "4,5,6")] * 3, ["4", "5", "6"]),
        ([("a", "0")] * 2, ["0", "0"]),  # a launcher's own: each sees its card as number 0
        ([("a", "2"), ("a", "3")], ["2", "3"]),
        ([("a", None), ("b", None), ("b", None)], [None, "0", "1"]),
        ([("a", "")] * 2, ["", ""]),  # no card
    ],
)
def test_one_process_a_card(monkeypatch, seen, expected):
    class Of(LocalCommunicator):
        def all_gather(self, value):
            return seen

    for rank, (host, visible) in enumerate(seen):
        monkeypatch.setattr(os, "uname", lambda host=host: types.SimpleNamespace(nodename=host))
        monkeypatch.delenv(cards.VISIBLE, raising=False)
        if visible is not None:
            monkeypatch.setenv(cards.VISIBLE, visible)
        one = Of()
        one.rank = rank
        cards.split_cards(one)
        assert os.environ.get(cards.VISIBLE) == expected[rank]
