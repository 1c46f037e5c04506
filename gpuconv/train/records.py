"""Which recorded step serves which step: by shapes, and by all else that a recording fixes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import numpy as np

from gpuconv.cuda.recording import Recorder
from gpuconv.cuda.replay import Record
from gpuconv.nn import Buffer, Module, Parameter
from gpuconv.optim import EMA, Optimizer
from gpuconv.train.python_state import PLAIN, global_random_state, python_state

MOST = 4  # records that are kept
KINDS = 32  # of steps that are remembered
TRIES = 4  # steps of one kind, after which it is not tried any more to record it
# Of an optimiser and an average: what they change by `cuda.recording.again`, or `now` looks at.
_KNOWN = ("param_groups", "steps", "_state", "_ready", "_averages", "_set_aside", "model")
T = TypeVar("T")


class _Kind:
    """Steps of one kind. trace: what the last one launched."""

    def __init__(self) -> None:
        self.trace: Any = None
        self.tries = 0
        self.record: Record | None = None


class Records:
    """At most MOST recorded steps; the one unused for longest goes first.

    A step is recorded when one of its kind was run before and launched the same. say: is told, in
    a line, of steps that cannot be recorded. wanted: False for steps that are all ordinary ones.
    """

    def __init__(self, on: Any, say: Callable[[str], None], wanted: bool = True) -> None:
        self.on, self._say, self.wanted = on, say, wanted
        self._kinds: dict[Hashable, _Kind] = {}
        self._said: set[str] = set()
        self._new = 0  # kinds, one after the other, that were new
        self._changing = 0  # steps, one after the other, that a guard was against

    def find(self, kind: Hashable) -> Record | None:
        """The record of steps of this kind, if there is one."""
        found = self._kinds.get(kind)
        if found is None or found.record is None:
            return None
        self._kinds[kind] = self._kinds.pop(kind)  # used last
        return found.record

    def run(
        self,
        kind: Hashable,
        step: Callable[[Recorder | None], T],
        mark: Callable[[], Hashable] = tuple,
        guard: Callable[[], Callable[[], str]] = lambda: str,
    ) -> T:
        """step(recorder), an ordinary step; it is recorded, if it can be and was run before. kind:
        None for a step that shall not be. mark: see `Record`. guard: see `Fixed`, called before it.
        """
        self._new = 0 if kind in self._kinds else self._new + 1
        if self._new == KINDS:
            self.say("the step is not recorded: what it is given or reads is never the same again")
        known = self._kinds.setdefault(kind, _Kind())
        if len(self._kinds) > KINDS:
            del self._kinds[next(iter(self._kinds))]
        if kind is None or not self.wanted or max(known.tries, self._changing) >= TRIES:
            return step(None)
        known.tries += 1
        changed = guard()
        recorder = Recorder(self.on)
        with recorder.recording(keep=known.trace is not None):
            result = step(recorder)
        self._changing = self._changing + 1 if (why := changed()) else 0
        recorder.refused = recorder.refused or why
        before, known.trace = known.trace, None if recorder.refused else recorder.trace
        if known.trace is not None and known.trace == before:
            self._make_room()
            known.record, known.tries = Record(recorder, mark), 0
            if known.record.note:
                self.say(f"no graph ({known.record.note}): the step's launches are repeated")
        elif TRIES in (known.tries, self._changing):
            why = recorder.refused or "it is not the same each time"
            self.say(f"the step is not recorded: {why}")
        return result

    def _make_room(self) -> None:
        kept = [kind for kind in self._kinds.values() if kind.record is not None]
        for kind in kept[: max(0, len(kept) + 1 - MOST)]:
            kind.record = kind.trace = None

    def say(self, text: str) -> None:
        """Tell a line, once."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)


class Fixed:
    """What a recorded step fixes besides shapes: arrays, modes and settings of modules, and all
    that a module, a loss or a forward of the user's own keeps in Python.
    """

    def __init__(self, *parts: Any) -> None:
        """parts: modules, optimisers, functions; None for none."""
        found = [m for each in parts if isinstance(each, Module) for m in each.modules()]
        self._modules: list[Module] = list({id(m): m for m in found}.values())
        held = [v for m in self._modules for n, v in vars(m).items() if n not in m.counters]
        self._holders = [p for p in held if isinstance(p, Parameter | Buffer)]
        self._optimizers = [each for each in parts if isinstance(each, Optimizer)]
        self._averages = [each for each in parts if isinstance(each, EMA)]
        others = [p for p in parts if p is not None and not isinstance(p, Module)]
        self._parts = [*self._modules, *others]
        self._apart = {id(each) for each in (*self._modules, *self._optimizers)}

    def now(self, *more: Hashable) -> Hashable:
        """A value that is equal as long as a recording is right; None while a hook wants to be
        called, which no recording does.
        """
        found: list[Hashable] = list(more)
        for module in self._modules:
            if module._hooks:
                return None
        for holder in self._holders:
            here = isinstance(holder.data, np.ndarray)
            found.append(python_state([holder.data]) if here else id(holder.data))
            if isinstance(holder, Parameter):
                if holder._hooks:
                    return None
                found.append(holder.requires_grad)
        for optimizer in self._optimizers:
            found += self._settings(optimizer)
        for average in self._averages:
            found += [id(a) for a in average._averages.values() if not isinstance(a, np.ndarray)]
        return *found, *(state for _, state in self.state())

    def state(self, kept: list[Any] | None = None) -> list[tuple[str, Hashable]]:
        """The part of `now` that a step may not change itself, with what each of its parts is of.
        kept: gets what is known by identity.
        """
        states: list[tuple[str, Hashable]] = []
        for part in self._parts:
            values: Any = [part]
            if isinstance(part, Module | Optimizer | EMA):
                known = part.counters if isinstance(part, Module) else _KNOWN
                values = [value for name, value in vars(part).items() if name not in known]
            found: Any = ()
            if _is_own(part):
                found = python_state([type(part), *values], self._apart, kept)
            elif isinstance(part, Module):
                found = tuple([v if isinstance(v, PLAIN) else id(v) for v in values])
            states.append((getattr(part, "__name__", type(part).__name__), found))
        return states

    def guard(self) -> Callable[[], str]:
        """What says, after a step, why it cannot be recorded, or ""."""
        before, drawn = self.state(), global_random_state()

        def changed() -> str:
            if global_random_state() != drawn:
                return "it draws random numbers of Python or NumPy"
            for old, new in zip(before, self.state(), strict=True):
                if old != new:
                    return f"{new[0]} changes its own attributes or global variables as it runs"
            return ""

        return changed

    def arrays(self) -> list[Any]:
        """What `now` knows by identity alone: to be kept with a record."""
        states = [dict(state) for each in self._optimizers for state in each._state]
        states += [dict(average._averages) for average in self._averages]
        kept: list[Any] = [dict(vars(module)) for module in self._modules]
        self.state(kept)
        return [*[holder.data for holder in self._holders], *states, *kept]

    def gradients(self) -> list[tuple[Parameter, Any]]:
        """All parameters, with their gradients."""
        own = [holder for holder in self._holders if isinstance(holder, Parameter)]
        found = {id(p): p for p in [*own, *(p for each in self._optimizers for p in each.params)]}
        return [(p, p.grad) for p in found.values()]

    def settings(self) -> list[Any]:
        """Of the optimisers."""
        return [each.hyperparameters() for each in self._optimizers]

    def _settings(self, optimizer: Optimizer) -> Iterator[Hashable]:
        for group in optimizer.param_groups:
            kernel, numbers = optimizer._kernel(group)
            yield kernel
            yield from (value for value in numbers.values() if isinstance(value, bool))
        for state in optimizer._state:
            yield from map(id, state.values())


def _is_own(part: Any) -> bool:
    """Whether it may do or keep what only its author knows: no layer of gpuconv as it is."""
    ours = type(part).__module__.partition(".")[0] == "gpuconv"
    return not ours or (isinstance(part, Module) and "forward" in vars(part))
