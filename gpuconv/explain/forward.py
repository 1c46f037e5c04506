"""The operations that lead to a layer's output, found by tracing shapes."""

from __future__ import annotations

from collections.abc import Sequence

from gpuconv.nn import Module, trace
from gpuconv.nn.trace import Step


def steps_of(
    model: Module, input_shape: Sequence[int], layer: str
) -> tuple[list[Step], dict[int, str], int]:
    """The steps of a forward pass for images of that shape, the shortest name of the layer whose
    output each gives, where it has one, and the number of the step that gives layer `layer`'s.

    A layer after that one may not fit the images. Raises ValueError for an unknown layer, one that
    is not run in evaluation, one that does not fit, and a forward pass that needs values.
    """
    model.get_submodule(layer)
    try:
        found = trace(model, tuple(input_shape))
    except (ValueError, TypeError) as error:
        found = error.trace  # type: ignore[union-attr]
        if layer not in found.outputs:
            where = found.failed or "the network"
            if isinstance(error, TypeError):
                where = f"explain: the forward pass of {where} needs more than shapes"
            raise ValueError(f"{where}: {error}") from error
    if layer not in found.outputs:
        raise ValueError(f"explain: in evaluation, the network does not run layer {layer}")
    names: dict[int, str] = {}
    for name, number in found.outputs.items():
        if name and (number not in names or len(name) < len(names[number])):
            names[number] = name
    return found.steps, names, found.outputs[layer]
