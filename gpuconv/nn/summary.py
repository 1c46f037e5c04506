"""`summary`: the layers of a network as a table: shapes, parameters, multiply-adds and memory."""

from __future__ import annotations

from dataclasses import dataclass

from gpuconv.arrays import ShapeOnly
from gpuconv.autograd import Tensor, enable_grad, nodes_of
from gpuconv.nn.module import Module, Shape
from gpuconv.nn.trace import Call, Trace, run, trace

HEADER = ("name", "type", "arguments", "input", "output", "parameters", "multiply-adds")


@dataclass(frozen=True)
class Summary:
    """What `summary` found. `error` is None, or why the layer after the last row does not fit.

    rows: a `Call` for each simple layer. parameters, buffers: numbers of values. multiply_adds: of
    one example's forward pass. kept: bytes of one example that training keeps for the backward
    pass, in float32.
    """

    rows: list[Call]
    input: Shape
    parameters: int
    buffers: int
    multiply_adds: int
    kept: int
    error: str | None

    def training_bytes(self, batch: int = 1, states: int = 1) -> int:
        """A lower bound of the bytes that a training step takes in float32: parameters, gradients,
        `states` values of each parameter's for the optimiser (1 is SGD with momentum, 2 Adam),
        buffers, and what is kept for the backward pass. Workspaces and temporary gradients come on
        top.
        """
        return 4 * (self.parameters * (2 + states) + self.buffers) + batch * self.kept

    def __str__(self) -> str:
        cells = [HEADER, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        form = "  ".join(f"{{:{'<<<<<>>'[i]}{width}}}" for i, width in enumerate(widths))
        lines = [form.format(*row).rstrip() for row in cells]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *self._totals()])

    def _repr_html_(self) -> str:
        from gpuconv.viz.html import paragraph, table

        return table(HEADER, map(_cells, self.rows)) + paragraph("\n".join(self._totals()))

    def _totals(self) -> list[str]:
        if self.error is not None:
            return [f"stopped here: {self.error}"]
        size, batch = 4 * self.parameters, 64
        state = f"parameters, gradients and momentum {size_text(3 * size)}"
        kept = f"kept for backward {size_text(batch * self.kept)}"
        totals = [
            f"parameters      {self.parameters:,} ({size_text(size)} in float32)",
            f"multiply-adds   {self.multiply_adds:,} for one {_shape(self.input)} input",
            f"to train        at least {size_text(self.training_bytes(batch))} at batch {batch} "
            f"(SGD with momentum): {state}, {kept}",
        ]
        if self.buffers:
            totals.insert(1, f"buffers         {self.buffers:,}")
        return totals


def summary(network: Module, input_shape: Shape | None = None) -> Summary:
    """Trace one example's shape, (C, H, W), through a network; str() of the result is the table.

    input_shape: may be left out for a model that knows its own. Where a layer does not fit, the
    rows up to it are there and `error` says why. Raises ValueError if no input shape is known.

    >>> from gpuconv import models
    >>> summary(models.lenet()).parameters
    63802
    """
    shape = input_shape or getattr(network, "input_shape", None)
    if shape is None:
        raise ValueError(
            "summary: this network does not know its input; "
            "give input_shape=(channels, height, width)"
        )
    error, kept = None, 0
    try:
        found = trace(network, tuple(shape), training=True)
        kept = _kept_bytes(network, tuple(shape))
    except ValueError as problem:
        found, error = getattr(problem, "trace", Trace(network)), str(problem)
    simple = {call.name for call in found.calls}
    return Summary(
        rows=found.calls,
        input=tuple(shape),
        parameters=parameter_count(network),
        buffers=sum(buffer.data.size for buffer in network.buffers()),
        multiply_adds=sum(call.multiply_adds for call in found.calls)
        # and what modules with modules inside run themselves
        + sum(step.multiply_adds for step in found.steps if step.module not in simple),
        kept=kept,
        error=error,
    )


def parameter_count(network: Module) -> int:
    """How many values training changes: without those that `connections` leaves out."""
    count = sum(parameter.data.size for parameter in network.parameters())
    for module in network.modules():
        if getattr(module, "connections", None) is not None:
            count -= module.weight.size - module.weights_used
    return count


def _kept_bytes(network: Module, shape: Shape) -> int:
    """Bytes of what one example's forward pass in training saves for backward, weights apart."""
    with enable_grad():
        y = run(network, shape, True, Trace(network, fusing=True))
    saved: dict[int, int] = {}  # by block of memory: several nodes and outputs may share one
    for root in y.values() if isinstance(y, dict) else y if isinstance(y, tuple | list) else (y,):
        for node in nodes_of(root) if isinstance(root, Tensor) else ():
            for array in node.saved or ():
                if isinstance(array, ShapeOnly):
                    block = array if array.base is None else array.base
                    saved[id(block)] = block.nbytes
    return sum(saved.values())


def _cells(row: Call) -> tuple[str, ...]:
    return (
        row.name,
        type(row.module).__name__,
        row.module.extra_repr(),
        _shape(row.input_shape),
        _shape(row.output_shape),
        f"{parameter_count(row.module):,}",
        f"{row.multiply_adds:,}",
    )


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape))


def size_text(count: float) -> str:
    """A number of bytes as people read it: "510.4 kB"."""
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count:.0f} B"
