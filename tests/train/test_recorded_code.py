"""Recorded steps and code of the user's own: what its Python reads, and changes, counts."""

import functools
import types

import numpy as np
import pytest
from test_recorded import ITS_OWN, Listener, Net, counted, fit, trainer  # noqa: F401

from gpuconv import nn, train
from gpuconv.train.python_state import python_state

pytestmark = pytest.mark.filterwarnings("error")

flag = False
flags = {"of": [False]}
settings = types.SimpleNamespace(flag=False)
elsewhere = types.ModuleType("elsewhere")
elsewhere.flag = False
calls = 0


def helper():
    return flag


class Global(Net):
    def turn(self):
        return flag


class OfHelper(Net):
    def turn(self):
        return helper()


class OfInner(Net):
    def turn(self):
        return any((lambda: flag or n)() for n in (False,))


class InContainer(Net):
    def turn(self):
        return flags["of"][0]


class OfObject(Net):
    def turn(self):
        return settings.flag


class OfModule(Net):
    def turn(self):
        return elsewhere.flag


class OfClass(Net):
    flag = False

    def turn(self):
        return self.flag


class OfBase(OfClass):
    pass


class OfProperty(Net):
    @property
    def wanted(self):
        return flag

    @staticmethod
    def fixed(wanted):
        return wanted and flag

    def turn(self):
        return self.fixed(self.wanted)


def flip(value):
    global flag
    flag = flags["of"][0] = settings.flag = elsewhere.flag = OfClass.flag = value


@pytest.fixture(autouse=True)
def flipped_back():
    yield
    flip(False)


READERS = (Global, OfHelper, OfInner, InContainer, OfObject, OfModule, OfClass, OfBase, OfProperty)


@pytest.mark.parametrize(
    "make", [pytest.param(m, marks=() if m is OfHelper else pytest.mark.slow) for m in READERS]
)
def test_what_a_forward_reads_outside_of_its_layers_is_what_it_is(make):
    class Flip(train.Callback):
        def on_batch_end(self, run):
            flip(run.state.step >= 9)

    found = []
    for graph in (True, False):
        flip(False)
        run = trainer(graph, model=make(), average=False, schedule=None, callbacks=[Flip()])
        found.append(fit(run))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] > 4


@pytest.mark.parametrize("make", READERS)
def test_the_state_of_a_class_and_of_what_it_names(make):
    def state():
        return python_state([make])

    before = state()
    assert before == state()
    flip(True)
    assert before != state()
    flip(False)
    assert before == state()


def test_installed_packages_have_no_state():
    for one in (functools.wraps, np.linalg.norm, nn.Module.train, pytest.importorskip, nn.Linear):
        kept = []
        python_state([one], kept=kept)
        assert not any(isinstance(each, types.ModuleType) for each in kept)
        assert len(kept) < 9


class CountingGlobally(Net):
    def turn(self):
        global calls
        calls += 1
        return calls > 8


def test_a_global_count_is_counted():
    global calls
    found, said = [], Listener()
    for graph in (True, False):
        calls = 0
        run = trainer(graph, model=CountingGlobally(), average=False, callbacks=[said])
        found.append((*fit(run), calls))
    assert found[0] == found[1]
    assert f"the step is not recorded: CountingGlobally {ITS_OWN}" in said.said


class WithSet(Net):
    def __init__(self):
        super().__init__()
        self.seen = {"a", 1}

    def turn(self):
        return len(self.seen) > 2


def test_a_set_of_a_layer_s():
    class Grow(train.Callback):
        def on_batch_end(self, run):
            if run.state.step == 9:
                run.model.seen.add("b")

    found = [fit(trainer(g, model=WithSet(), callbacks=[Grow()])) for g in (True, False)]
    assert found[0][:2] == found[1][:2]
    assert found[0][2] > 4


class MyNorm(nn.BatchNorm2d):
    """Nothing but a name of one's own."""


def test_a_batch_norm_of_ones_own_is_recorded():
    found = []
    for graph in (True, False):
        model = nn.Sequential(MyNorm(1, momentum=None), Net())
        found.append(fit(trainer(graph, model=model)))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] > 4


def test_weights_of_classes_are_recorded_and_may_change():
    class Reweigh(train.Callback):
        def on_batch_end(self, run):
            if run.state.step == 9:
                run.loss.weight.data[1] = 4
            if run.state.step == 12:
                run.loss.weight.data = np.float32([1, 0, 2])

    found = []
    for graph in (True, False):
        loss = nn.CrossEntropyLoss(weight=[1, 0.5, 2], label_smoothing=0.1)
        found.append(fit(trainer(graph, loss=loss, callbacks=[Reweigh()])))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] > 4
