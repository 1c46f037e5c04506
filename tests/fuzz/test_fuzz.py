"""A few hostile inputs of every kind in `make test`, many in `make test-all`; see fuzz.py."""

import pytest
from fuzz import KINDS, try_all

FEW = {  # number 50 of a kind runs in a process of its own
    "tensors": range(26, 52),
    "metadata": range(20),
    "history": range(5),
    "idx": range(12),
    "arrays": range(14, 24),
    "pictures": range(10),
    "requests": range(100),
}
MANY = 100  # more of each kind, and whole processes among them: numbers 50, 150, ...


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_or_one_line(kind):
    check(kind, FEW[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_or_one_line_many(kind):
    check(kind, range(1000, 1000 + MANY))


def check(kind, numbers):
    outcomes = try_all(kind, numbers)
    assert len(outcomes) == len(numbers)
    wrong = [f"{each.name}: {each.problem}\n{each.shown}" for each in outcomes if each.problem]
    assert not wrong, "\n\n".join(wrong[:4])
    assert any(each.answered for each in outcomes)  # the inputs are not all refused at once
