"""Where the outputs of a compiled network's steps lie."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.conv_pool import GRAIN
from gpuconv.cpu.moves import Image
from gpuconv.nn.inference_graph import JOINED, Operation


def is_small(each: Operation) -> bool:
    """Whether a second thread would not be worth it for a linear layer."""
    return each.rest is None and each.step.shape[0] * each.w.size < GRAIN


def planar(operations: list[Operation], output: int) -> list[int]:
    """The steps whose output is kept as images (N, C, H, W), or as rows made of these, because all
    that read it take it so.
    """
    others: set[int | None] = {output}
    for each in operations:
        small = each.name == "linear" and is_small(each)
        if each.pooled is None and each.name != "reshape" and not small:
            others |= {*each.inputs, each.rest}
    found: list[int] = []
    for each in operations:
        flat = each.name == "reshape" and each.inputs[0] in found and len(each.step.shape) == 2
        if (each.name == "input" or each.pooled or flat) and each.output not in others:
            found.append(each.output)
    return found


class Places:
    """Where each step's output lies. Buffers are used again when their last reader has run.

    What is joined along the channels is computed where it belongs in the whole.
    """

    def __init__(
        self, operations: list[Operation], shapes: list[tuple[int, ...]], output: int
    ) -> None:
        self.shapes = shapes
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
        buffers = [np.empty(size, np.float32) for size in sizes]
        self.buffers = {root: buffers[slot] for root, slot in chosen.items()}

    def _size(self, root: int) -> int:
        return int(np.prod(self.shapes[root]))

    def at(self, number: int) -> tuple[np.ndarray, Image]:
        """The buffer, and where in it the step's output lies."""
        root, first = self.root(number)
        N, C, H, W = (*self.shapes[number], 1, 1)[:4]
        return self.buffers[root], Image(first, self.shapes[root][1], N, H, W, C)

    def view(self, number: int) -> np.ndarray:
        """The step's output as an array (N, H, W, C)."""
        buffer, image = self.at(number)
        whole = buffer[: image.N * image.H * image.W * image.step]
        whole = whole.reshape(image.N, image.H, image.W, image.step)
        return whole[..., image.offset : image.offset + image.C]

    def is_part(self, number: int, whole: int, first: int) -> bool:
        """Whether a step's output lies in that of another, from that channel on."""
        root, at = self.root(whole)
        return self.root(number) == (root, at + first)
