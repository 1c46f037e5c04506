"""Where the outputs of a compiled network's steps lie."""

from __future__ import annotations

import math

import numpy as np

from gpuconv.cpu.elementwise import FMA_GRAIN
from gpuconv.cpu.moves import Image
from gpuconv.cpu.workspace import aligned
from gpuconv.nn.inference_graph import JOINED, TAKE_PLANAR, Operation


def is_small(each: Operation) -> bool:
    """Whether a second thread would not be worth it for a linear layer."""
    return each.rest is None and each.step.shape[0] * each.w.size < FMA_GRAIN


def planar(operations: list[Operation], output: int) -> set[int]:
    """The steps whose output lies as (N, C, H, W): what is pooled, and the input where all that
    read it take it so.
    """
    others: set[int | None] = {output}
    for each in operations:
        takes_it = each.name in TAKE_PLANAR and each.scale is None
        others |= {each.rest} if takes_it else {each.rest, *each.inputs}
    return {each.output for each in operations if each.pooled} | ({0} - others)


class Places:
    """Where each step's output lies. Buffers are used again when their last reader has run.

    What is joined along the channels is computed where it belongs in the whole.
    """

    def __init__(
        self, operations: list[Operation], shapes: list[tuple[int, ...]], output: int
    ) -> None:
        # axes beyond the third are one: a reshape may give more or fewer than four
        self.shapes = [(*(*shape, 1, 1)[:3], math.prod(shape[3:])) for shape in shapes]
        self.planar = planar(operations, output)
        self.whole: dict[int, tuple[int, int]] = {}  # step: (the step it is part of, first channel)
        made = {each.output for each in operations}
        for each in reversed(operations):
            first = 0
            for number in each.inputs if each.name in JOINED else ():
                if number in made and number not in self.whole and number != output:
                    self.whole[number] = each.output, first
                first += shapes[number][1]
        self._give_buffers(operations, output)

    def root(self, number: int) -> tuple[int, int]:
        """The step whose buffer it lies in, and its first channel there."""
        first = 0
        while number in self.whole:
            number, more = self.whole[number]
            first += more
        return number, first

    def _give_buffers(self, operations: list[Operation], output: int) -> None:
        begins: dict[int, int] = {}
        ends: dict[int, int] = {self.root(output)[0]: len(operations)}
        for time, each in enumerate(operations):
            read = [*each.inputs, *([] if each.rest is None else [each.rest])]
            for number in (each.output, *read):
                root = self.root(number)[0]
                begins.setdefault(root, time)
                ends[root] = max(ends.get(root, 0), time)
        sizes: list[int] = []
        free: list[int] = []
        chosen: dict[int, int] = {}
        for time in range(len(operations)):
            for root in [root for root, begin in begins.items() if begin == time]:
                need = self._size(root)
                slot = min(free, key=lambda s: (sizes[s] < need, abs(sizes[s] - need)), default=-1)
                if slot < 0:
                    slot = len(sizes)
                    sizes.append(0)
                else:
                    free.remove(slot)
                sizes[slot] = max(sizes[slot], need)
                chosen[root] = slot
            free += [chosen[root] for root, end in ends.items() if end == time]
        buffers = list(map(aligned, sizes))
        self.buffers = {root: buffers[slot] for root, slot in chosen.items()}

    def _size(self, root: int) -> int:
        return math.prod(self.shapes[root])

    def at(self, number: int) -> tuple[np.ndarray, Image]:
        """The buffer, and where in it the step's output lies."""
        root, first = self.root(number)
        N, C, H, W = self.shapes[number]
        step = 0 if number in self.planar else self.shapes[root][1]
        return self.buffers[root], Image(first, step, N, H, W, C)

    def view(self, number: int) -> np.ndarray:
        """The step's output as an array (N, H, W, C)."""
        buffer, image = self.at(number)
        N, H, W, C = image.N, image.H, image.W, image.C
        if not image.step:
            return buffer[: N * C * H * W].reshape(N, C, H, W).transpose(0, 2, 3, 1)
        whole = buffer[: N * H * W * image.step].reshape(N, H, W, image.step)
        return whole[..., image.offset : image.offset + C]

    def images(self, number: int) -> np.ndarray:
        """The step's output as an array (N, C, H, W)."""
        return self.view(number).transpose(0, 3, 1, 2)

    def is_part(self, number: int, whole: int, first: int) -> bool:
        """Whether a step's output lies in that of another, from that channel on."""
        root, at = self.root(whole)
        return self.root(number) == (root, at + first)
