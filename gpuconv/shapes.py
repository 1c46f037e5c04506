"""The geometry of a sliding window: one rule for output shapes, used by every operation and device.

Source: ONNX Conv, MaxPool and AveragePool; PyTorch's Conv2d and MaxPool2d, including ceil_mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from gpuconv.arguments import flag, pair

Pair = int | tuple[int, int]
Padding = (
    int
    | tuple[int, int]
    | tuple[tuple[int, int], tuple[int, int]]
    | Literal["same", "valid", "full"]
)
Tap = tuple[int, int, tuple[slice, ...], tuple[slice, ...]]

NAMED_PADDING = ("same", "valid", "full")


@dataclass(frozen=True)
class Window:
    """A window of R x S taps that slides over an image.

    kernel_size, stride, dilation: an int, or (vertical, horizontal); all at least 1. A stride of
    None is the kernel_size, as pooling has it.
    padding: an int, (vertical, horizontal), ((top, bottom), (left, right)), or a name:
    "valid" is none, the article's narrow convolution; "full" is dilation*(kernel-1) on every
    side, its wide convolution, where every overlap with the image counts; "same" gives
    ceil(size/stride) outputs, any odd row or column of padding at the bottom and right, as
    Keras and ONNX's SAME_UPPER do (and PyTorch where the stride is 1).
    ceil_mode: a last, partial window counts too, and a window only if it starts inside the image
    or its top or left padding: 9 pixels, kernel 4, stride 4, padding 2 give 3 outputs, not 4.

    >>> Window(3, stride=2, padding=1).output_size(7, 9)
    (4, 5)
    >>> Window((3, 5), padding="full").output_size(4, 4)
    (6, 8)
    """

    kernel_size: Any
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", self.kernel_size)
        for name in ("kernel_size", "stride", "dilation"):
            object.__setattr__(self, name, pair(name, getattr(self, name), least=1))
        object.__setattr__(self, "padding", _padding(self.padding))
        object.__setattr__(self, "ceil_mode", flag("ceil_mode", self.ceil_mode))
        fields = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        object.__setattr__(self, "_hash", hash(fields))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]  # a key of every plan

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the image from a window's first tap to its last."""
        (R, S), (dil_h, dil_w) = self.kernel_size, self.dilation
        return dil_h * (R - 1) + 1, dil_w * (S - 1) + 1

    @property
    def taps_count(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def tap_type(self) -> str:
        """The dtype of a max-pool's argmax: a byte, where every tap and -1 fit it."""
        return "uint8" if self.taps_count <= 255 else "int32"

    def mostly_outside(self, H: int, W: int) -> bool:
        """Whether windows reach so far over the edge of an H x W image that nearly all of their
        taps fall outside: only `taps` passes over those.
        """
        (top, bottom), (left, right) = self.pads(H, W)
        return (H + top + bottom) * (W + left + right) > 64 * H * W + (1 << 16)

    def pads(self, H: int, W: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """((top, bottom), (left, right)) for an H x W image: "same" depends on the image's size."""
        if not isinstance(self.padding, str):
            return self.padding
        vertical, horizontal = (
            _named_pad(self.padding, size, extent, stride)
            for size, extent, stride in zip((H, W), self.extent, self.stride, strict=True)
        )
        return vertical, horizontal

    def output_size(self, H: int, W: int) -> tuple[int, int]:
        """(P, Q), how many windows fit an H x W image; ValueError where none does."""
        return _output_size(self, H, W)

    def _outputs(self, size: int, pad: tuple[int, int], axis: int) -> int:
        stride = self.stride[axis]
        room = size + sum(pad) - self.extent[axis]
        if size < 1 or not self.ceil_mode:
            return room // stride + 1 if size >= 1 and room >= 0 else 0
        outputs = -(-room // stride) + 1
        starts_inside = (size + pad[0] - 1) // stride + 1
        return min(outputs, starts_inside)

    def taps(self, H: int, W: int) -> Iterator[Tap]:
        """(r, s, outputs, pixels) of each tap that reads the image at all.

        outputs: the windows in which it falls on the image, as slices of (..., P, Q).
        pixels: what it reads in them, as slices of (..., H, W).
        """
        P, Q = self.output_size(H, W)
        (top, _), (left, _) = self.pads(H, W)
        rows, columns = self._axis_taps(0, top, P, H), self._axis_taps(1, left, Q, W)
        for r, out_rows, pixel_rows in rows:
            for s, out_columns, pixel_columns in columns:
                yield r, s, (..., out_rows, out_columns), (..., pixel_rows, pixel_columns)  # type: ignore[misc]

    def _axis_taps(
        self, axis: int, pad: int, outputs: int, size: int
    ) -> list[tuple[int, slice, slice]]:
        """(tap, outputs, pixels) of the taps that read the image, along one axis."""
        stride, dilation = self.stride[axis], self.dilation[axis]
        first = max(0, -(((outputs - 1) * stride - pad) // dilation))
        last = min(self.kernel_size[axis] - 1, (size - 1 + pad) // dilation)
        reached = (
            (tap, _reach(tap * dilation - pad, stride, outputs, size))
            for tap in range(first, last + 1)
        )
        return [(tap, *reach) for tap, reach in reached if reach]


@lru_cache(maxsize=4096)
def _output_size(window: Window, H: int, W: int) -> tuple[int, int]:
    P, Q = (
        window._outputs(size, pad, axis)
        for axis, (size, pad) in enumerate(zip((H, W), window.pads(H, W), strict=True))
    )
    if P < 1 or Q < 1:
        raise ValueError(
            f"a window of {window.extent[0]}x{window.extent[1]} pixels "
            f"(kernel_size={window.kernel_size}, dilation={window.dilation}) does not fit an "
            f"image of {H}x{W} with padding={window.padding}; "
            f"use a larger image, more padding or a smaller kernel"
        )
    return P, Q


def window(
    kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Window:
    """A `Window`, made once for each set of arguments: operations ask for theirs at every call."""
    sizes = kernel_size, stride, padding, dilation
    try:
        return _window(*sizes, ceil_mode, repr(sizes))
    except TypeError:  # lists are pairs too, but no keys; what is no pair is refused again
        return Window(kernel_size, stride, padding, dilation, ceil_mode)


@lru_cache(maxsize=1024, typed=True)
def _window(*arguments: Any) -> Window:
    """The last argument tells (1, 1.0) from (1, 1): they are equal, and 1.0 is no length."""
    return Window(*arguments[:-1])


def _padding(value: Any) -> Any:
    if isinstance(value, str):
        if value not in NAMED_PADDING:
            raise ValueError(
                f'padding must be a number or one of "same", "valid", "full", got {value!r}'
            )
        return value
    if isinstance(value, Sequence) and any(isinstance(side, Sequence) for side in value):
        if len(value) != 2:
            raise TypeError(f"padding must be ((top, bottom), (left, right)), got {value!r}")
        return pair("padding", value[0], least=0), pair("padding", value[1], least=0)
    vertical, horizontal = pair("padding", value, least=0)
    return (vertical, vertical), (horizontal, horizontal)


def _named_pad(name: str, size: int, extent: int, stride: int) -> tuple[int, int]:
    if name == "valid":
        return 0, 0
    if name == "full":
        return extent - 1, extent - 1
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def _reach(offset: int, stride: int, outputs: int, size: int) -> tuple[slice, slice] | None:
    """The outputs o with 0 <= o*stride + offset < size and the pixels they read, as slices.

    None where there is no such output.
    """
    first = max(0, -(offset // stride))
    last = min(outputs - 1, (size - 1 - offset) // stride)
    if first > last:
        return None
    start = first * stride + offset
    return slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)
