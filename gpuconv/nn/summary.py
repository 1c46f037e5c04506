"""`summary`: the layers of a network as a table: shapes, parameters and multiply-adds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpuconv.nn.layer import Layer, Row, Shape

HEADER = ("name", "type", "arguments", "input", "output", "parameters", "multiply-adds")


@dataclass(frozen=True)
class Summary:
    """What `summary` found. `error` is None, or why the layer after the last row does not fit.

    parameters, buffers: numbers of values. multiply_adds: of one example's forward pass.
    activations: values of one example, all outputs and the input; training keeps some of them for
    the backward pass.
    """

    rows: list[Row]
    input: Shape
    parameters: int
    buffers: int
    multiply_adds: int
    activations: int
    error: str | None

    def __str__(self) -> str:
        cells = [HEADER, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(_align, row, widths, range(len(row)))).rstrip() for row in cells]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *self._totals()])

    def _totals(self) -> list[str]:
        if self.error is not None:
            return [f"stopped here: {self.error}"]
        totals = [
            f"parameters      {self.parameters:,} ({_size(4 * self.parameters)} in float32)",
            f"multiply-adds   {self.multiply_adds:,} for one {_shape(self.input)} input",
            f"activations     {self.activations:,} an example ({_size(4 * self.activations)})",
        ]
        if self.buffers:
            totals.insert(1, f"buffers         {self.buffers:,}")
        return totals


def summary(network: Layer, input_shape: Shape | None = None) -> Summary:
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
    rows: list[Row] = []
    error = None
    try:
        network.trace(tuple(shape), "", rows)
    except ValueError as problem:
        error = str(problem)
    return Summary(
        rows=rows,
        input=tuple(shape),
        parameters=sum(parameter.data.size for parameter in network.parameters()),
        buffers=sum(buffer.data.size for _, buffer in network.named_buffers()),
        multiply_adds=sum(row.layer.multiply_adds(row.input) for row in rows),
        activations=math.prod(shape) + sum(math.prod(row.output) for row in rows),
        error=error,
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        type(row.layer).__name__,
        row.layer.describe(),
        _shape(row.input),
        _shape(row.output),
        f"{_count(row.layer):,}",
        f"{row.layer.multiply_adds(row.input):,}",
    )


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _count(layer: Layer) -> int:
    return sum(parameter.data.size for parameter in layer.parameters())


def _align(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column >= 5 else text.ljust(width)


def _size(count: float) -> str:
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count:.0f} B"
