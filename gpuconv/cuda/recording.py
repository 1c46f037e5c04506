"""Record a step once, replay it: the launches of an ordinary step, started again without the host.

A `Recorder` notes what `Runtime.run` starts while an ordinary step runs, and a `Record` of it
(replay.py) runs that step again: on `sim` the list of launches, on `cuda` a CUDA graph made of it.
Addresses are those of the first time, so all that changes from step to step lies in memory:

- **The host's numbers** (a rate, a seed) are computed by the host as in any step, by the functions
  that `again` was given, for all steps of one call of `Record.run`; they reach the device in one
  table, of which note_batch (kernels/step.cu) makes one row after the other the current one.
- **What the host wants to know** (losses, right answers) goes to a ring that it reads once.
- **A loss that is not finite** stops all updates on the device; the host puts its own state back to
  where that step found it.

Nothing else may pass between host and device within a step: a recorder refuses it by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpuconv.cuda import source
from gpuconv.cuda import step_launch as config
from gpuconv.cuda.host_numbers import HostNumbers
from gpuconv.cuda.step_launch import COLUMNS, LOSSES, NORM, STATE, STEP

if TYPE_CHECKING:
    from gpuconv.cuda.binding import Binding
    from gpuconv.cuda.launch_config import Launch, Scalar
    from gpuconv.cuda.runtime import Runtime

SLOTS = 64  # steps that one call of `Record.run` takes at most
SEEDS, NUMBERS = 256, 512  # of a step, at most

Advance = Callable[[], tuple["Scalar", ...] | None]
Snapshot = Callable[[], Callable[[], None]]


class _State(threading.local):
    recorder: Recorder | None = None  # of the step that this thread records


state = _State()


class Effect:
    """What the host does anew for every step. numbers: what it returned last."""

    def __init__(self, advance: Advance, snapshot: Snapshot, early: bool) -> None:
        self.advance, self.snapshot, self.early = advance, snapshot, early
        self.numbers: tuple[Scalar, ...] = ()
        self.kind = 0  # 1 if they are floats, 0 if they are seeds


class ChangingFloat(float):
    """A number that is another in the next step: number `index` of an effect, in `column`."""

    effect: Effect
    index: int
    column: int


class ChangingInt(int):
    """As `ChangingFloat`: a seed."""

    effect: Effect
    index: int
    column: int


class Call(NamedTuple):
    """What a step starts that is no launch of a kernel."""

    kernel: str  # its name, as a launch's
    function: Callable[[], None]

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.function()


def again(advance: Advance, snapshot: Snapshot) -> Any:
    """advance(), now and, where a step is being recorded, for each step that repeats it.

    advance: changes the host's state by one step; returns None, or the floats or the seeds (ints)
    that a kernel takes, in the order of its parameters. snapshot: called before steps are prepared,
    returns a function that puts the state back to where it is now.
    """
    found = advance()
    recorder = state.recorder
    return found if recorder is None else recorder.effect(found, advance, snapshot)


def derived(function: Callable[[float], tuple[float, ...]], value: float) -> tuple[float, ...]:
    """function(value), for each value that follows where it is one of `again`'s."""
    recorder = state.recorder
    if recorder is None or not isinstance(value, ChangingFloat):
        return function(value)
    effect, index = value.effect, value.index
    found = recorder.effect(
        function(value), lambda: function(effect.numbers[index]), lambda: lambda: None
    )
    return tuple(found)


def call(name: str, function: Callable[[], None]) -> None:
    """function(), now and at this place of each step that repeats a recorded one. It puts work into
    the current stream, and does nothing that a stream's capture forbids.
    """
    function()
    if state.recorder is not None:
        state.recorder.add_call(Call(name, function))


def note(scores: Any, labels: Any) -> None:
    """Where a step is being recorded: `Recorder.note`."""
    if state.recorder is not None:
        state.recorder.note(scores, labels)


def computed(y: np.ndarray, function: Callable[..., np.ndarray], *operands: Any) -> None:
    """Where a step is being recorded: the host computed y as function(*operands), arrays and
    numbers. If the arrays are losses, or were computed of them in this way, a replay computes y
    again. The function is linear, so that its gradient does not depend on them.
    """
    recorder = state.recorder
    if recorder is not None and recorder.host_numbers.computed(y, function, operands):
        numbers = [np.float64(o) for o in operands if isinstance(o, int | float | np.generic)]
        recorder.trace.append((function.__name__, numbers))


def adds_to(leaf: Any) -> None:
    """Where a step is being recorded: it adds to the gradient that a leaf has."""
    recorder = state.recorder
    if recorder is not None and recorder.before.get(id(leaf)) is leaf.grad:
        recorder.added_to.append((leaf, leaf.grad))


def refuse(why: str) -> None:
    """Where a step is being recorded: it cannot be, and this is why."""
    if state.recorder is not None and not state.recorder.refused:
        state.recorder.refused = why


@contextmanager
def paused() -> Iterator[None]:
    """Within, nothing is recorded."""
    before, state.recorder = state.recorder, None
    try:
        yield
    finally:
        state.recorder = before


class Recorder:
    """What one step asks of a device. Use: `with recorder.recording(): step()`, then `Record`.

    refused: why the step cannot be replayed, or "". trace: its launches and their fixed numbers,
    by which two steps are compared. slot: the array whose element is the number of the current step
    within a call of `Record.run`.
    """

    def __init__(self, on: Runtime) -> None:
        self.on, self.refused = on, ""
        self.launches: list[tuple[Launch | Call, list[Any]]] = []
        self.trace: list[tuple[Launch | str, list[Any]]] = []
        self.effects: list[Effect] = []
        self.scalars: list[Any] = []  # losses, as `Runtime.scalar` read them
        self.host_numbers = HostNumbers()  # what it read, and what the host computed of it
        self.kept: list[Any] = []
        self.inputs: list[Any] = []  # what its caller gives to each replay
        # What its caller wants to read after a replay; parameters and their gradients.
        self.outputs: Any = None
        self.gradients: list[tuple[Any, Any]] = []
        # Gradients that the step found, by the ids of their leaves; those that it added to.
        self.before: dict[int, Any] = {}
        self.added_to: list[tuple[Any, Any]] = []
        self.own: set[int] = set()  # addresses of the memory that the step itself allocated
        self.noted, self.keeping = False, True
        self.turn = 0  # the number of note_batch's launch
        self.used = [0, 0]  # seeds and numbers of a step
        self.host = on.pinned((STATE + SLOTS * (2 * SEEDS + NUMBERS),), np.uint32)
        self.host[:] = 0
        self.words = on.empty(self.host.size, np.uint32)
        self.state, self.table = self.words[:STATE], self.words[STATE:]
        self.stop, self.slot = self.words[:1], self.words[STEP : STEP + 1]
        # Seeds and numbers of the current step: what kernels read before `note`, and after it.
        self.rows = on.constant(np.zeros(SEEDS, np.uint64)), on.constant(np.zeros(NUMBERS, "f4"))
        self.later = on.empty(SEEDS, np.uint64), on.empty(NUMBERS)
        self.ring = on.zeros(SLOTS * COLUMNS + 1)
        on.queue().copy(self.words, self.host)

    @contextmanager
    def recording(self, keep: bool = True) -> Iterator[None]:
        """Within, this thread's launches are noted. keep: for a `Record`; arrays made within have
        memory that nobody else gets while it lives. Else for the trace alone.
        """
        if state.recorder is not None:
            raise RuntimeError("a step that is being recorded cannot record another one")
        self.keeping = keep
        with self.on.own_memory(self) if keep else nullcontext(), self.listening():
            yield

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, this thread's launches are noted."""
        state.recorder = self
        try:
            yield
        finally:
            state.recorder = None

    def add(
        self,
        bindings: Sequence[Binding],
        checked: Sequence[tuple[Launch, list[Any]]],
        numbers: Mapping[str, Scalar],
    ) -> None:
        """Note launches, as `Runtime.run` starts them."""
        for binding, (launch, given) in zip(bindings, checked, strict=True):
            arguments, changing = list(given), []
            for place, name, dtype in binding.given:
                number = numbers[name]
                if isinstance(number, ChangingFloat | ChangingInt):
                    changing.append(number)
                    arguments[place] = dtype.type(0)
            for p in binding.pointers:
                if p.name == "stop" and arguments[p.place] is self.on.nought(np.uint32):
                    arguments[p.place] = self.stop
                elif p.name == "step" and changing:
                    kind = isinstance(changing[0], ChangingFloat)
                    begin = changing[0].column
                    row = (self.later if self.noted else self.rows)[kind]
                    arguments[p.place] = row[begin : begin + len(changing)]
                    changing = []
            if changing:
                refuse(f"{launch.kernel} cannot read numbers that change from memory")
            fixed = [a for a in arguments if isinstance(a, np.generic)]
            self.trace.append((launch, fixed))
            if self.keeping:
                self.launches.append((launch, self.on.held(self.own, arguments)))

    def add_call(self, one: Call) -> None:
        """Note what is started between the launches."""
        self.trace.append((one.kernel, []))
        if self.keeping:
            self.launches.append((one, []))

    def effect(self, found: Any, advance: Advance, snapshot: Snapshot) -> Any:
        """Note what `again` was given; the numbers, marked."""
        effect = Effect(advance, snapshot, early=not self.noted)
        self.effects.append(effect)
        if found is None:
            return None
        effect.numbers = found
        mark: Any = ChangingFloat if isinstance(found[0], float) else ChangingInt
        kind = effect.kind = int(mark is ChangingFloat)
        marked = []
        for index, value in enumerate(found):
            one = mark(value)
            one.effect, one.index, one.column = effect, index, self.used[kind] + index
            marked.append(one)
        self.used[kind] += len(found)
        if self.used[0] > SEEDS or self.used[1] > NUMBERS:
            refuse(f"more than {SEEDS} seeds or {NUMBERS} numbers change from step to step")
        return marked

    def keep(self, arrays: Any) -> Any:
        """Keep arrays as long as the record."""
        self.kept.append(arrays)
        return arrays

    def note(self, scores: Any, labels: Any) -> None:
        """Note the losses that were read and how many scores (N, classes) are right. To be called
        before the first update; what `again` was given until then also happens in a step that
        stops.
        """
        on, many = self.on, len(self.scalars)
        if not many:
            return refuse("the loss is not computed by a kernel")
        if many > COLUMNS - LOSSES:
            return refuse(f"{many} losses in a step, at most {COLUMNS - LOSSES} can be noted")
        self.outputs = scores = on.contiguous(scores)
        labels = on.contiguous(labels)
        fixed = {"ring": self.ring, "state": self.state}
        for column, loss in enumerate(self.scalars[1:], LOSSES + 1):
            on.run(config.config_note_loss(column, SLOTS), **fixed, loss=loss)
        kind = source.c_type(labels.dtype)
        chosen = config.config_note_batch(*scores.shape, kind, SLOTS, (SEEDS, NUMBERS))
        arrays = {"loss": self.scalars[0], "scores": scores, "labels": labels, "table": self.table}
        arrays |= {"seeds": self.rows[0], "later_seeds": self.later[0]}
        arrays |= {"numbers": self.rows[1], "later_numbers": self.later[1]}
        self.turn = len(self.launches)
        on.run(chosen, {"seed_count": 0, "number_count": 0}, **fixed, **arrays)
        self.noted = True
        return None

    def note_norm(self, norm: Any) -> None:
        """Note a norm, one float32, by which the step may stop too."""
        chosen = config.config_note_loss(NORM, SLOTS, turned=True)
        self.on.run(chosen, ring=self.ring, state=self.state, loss=norm)
