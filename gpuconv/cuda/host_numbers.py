"""What the host computes from the losses that a recorded step read: a replay computes it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np


class HostNumber(NamedTuple):
    """What the host knows in a recorded step. losses: those that it depends on, by their places
    among all that the step read. of(losses): what it is in a step that read these.
    """

    losses: frozenset[int]
    of: Callable[[Any], float]


class HostNumbers:
    """The losses that a step read, and the linear functions of them that the host computed.

    values: the losses. total(losses): the step's own loss, where it reads these.
    """

    def __init__(self) -> None:
        self.values: list[float] = []
        self.total: Callable[[list[float]], float] = itemgetter(0)
        self._known: dict[int, tuple[Any, HostNumber]] = {}  # arrays, by their ids

    def read(self, value: float) -> np.ndarray:
        """Note a loss; it, as an array by which it is known."""
        array, place = np.asarray(value), len(self.values)
        self.values.append(value)
        self._known[id(array)] = array, HostNumber(frozenset([place]), itemgetter(place))
        return array

    def find(self, operand: Any) -> HostNumber | None:
        """What is known of an array, or a number that is the same in each step."""
        if isinstance(operand, int | float | np.generic):
            return HostNumber(frozenset(), lambda losses: float(operand))
        return self._known.get(id(operand), (None, None))[1]

    def computed(
        self, y: np.ndarray, function: Callable[..., Any], operands: Iterable[Any]
    ) -> bool:
        """Note y = function(*operands), where all operands are known; whether they are."""
        found = [number for each in operands if (number := self.find(each))]
        if len(found) < len([*operands]):
            return False

        def of(losses: Any) -> float:
            return float(function(*(np.asarray(number.of(losses)) for number in found)))

        losses = frozenset[int]().union(*(number.losses for number in found))
        self._known[id(y)] = y, HostNumber(losses, of)
        return True

    def add_up(self, loss: Any, value: float) -> str:
        """Note which number is the step's loss, and that its value is this; why a replay could not
        know it, or "".
        """
        number = self.find(loss)
        if not self.values:
            return "the loss is not computed by a kernel"
        if number is None or repr(number.of(self.values)) != repr(value):
            return "the loss is computed further by the host"
        if len(number.losses) < len(self.values):
            return "it computes a loss that is no part of its own"
        self.total = number.of
        return ""
