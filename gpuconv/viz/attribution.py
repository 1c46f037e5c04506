"""Explanations as pictures that can be read without colour vision: lightness alone orders them.

What has a sign is gray at 0, white at the largest and black at minus that, as filters are drawn;
what has none goes from dark blue to light yellow. A bar under each picture shows the scale.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from gpuconv.viz.sheet import Panel, magnify, signed_pixels

# cividis at ten even places, in which lightness rises evenly: Nunez et al. 2018, matplotlib
_STOPS = np.array(
    [
        (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115),
        (138, 134, 120), (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56),
    ]
)  # fmt: skip
_OUTLIERS = 99.0  # percent of the pixels that lie within the scale


def heat(share: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1, (H, W), as colours: uint8 (3, H, W), lighter for larger."""
    place = np.clip(share, 0, 1) * (len(_STOPS) - 1)
    planes = [np.interp(place, np.arange(len(_STOPS)), stops) for stops in _STOPS.T]
    return np.rint(np.stack(planes)).astype(np.uint8)


def attribution_panel(
    values: np.ndarray, title: str, signed: bool, size: int = 200, notes: tuple[str, ...] = ()
) -> Panel:
    """One map (H, W) as a panel of a sheet, magnified to about `size` pixels, with its scale.

    The scale ends where 99 of 100 pixels lie within it, so that a few do not leave the rest gray.
    """
    values = np.asarray(values, np.float64)
    strength = np.abs(values) if signed else values
    most = float(np.percentile(strength, _OUTLIERS)) or float(strength.max())
    pixels = _painted(magnify(values / (most or 1), size), signed)
    wide = pixels.shape[2]
    bar = np.broadcast_to(np.linspace(-1 if signed else 0, 1, wide), (8, wide))
    line = np.full((3, 3, wide), 255, np.uint8)
    low = "gray 0, black and white ±" if signed else "dark 0, light "
    return Panel(
        title,
        np.concatenate([pixels, line, _painted(bar, signed)], axis=1),
        (f"{low}{most:.2g} or more", *notes),
    )


def outlined_panel(image: np.ndarray, values: np.ndarray, title: str, size: int = 200) -> Panel:
    """The image with a line around the parts where a map (H, W) is above half of its largest.

    image: uint8 (1 or 3, H, W). The line is white with a black one around it, seen on any ground.
    """
    most = float(np.max(values, initial=0))
    inside = magnify(values > most / 2, size)
    pixels = magnify(np.broadcast_to(image, (3, *image.shape[1:])), size).copy()
    width = max(1, inside.shape[1] // 150)
    outer = _grown(inside, width)
    pixels[:, outer & ~inside] = 0
    pixels[:, inside & _grown(~inside, width)] = 255
    note = "inside: more than half of the largest" if most > 0 else "nothing speaks for it here"
    return Panel(title, pixels, (note,))


def mosaic(pictures: list[np.ndarray], columns: int, paper: int = 255) -> np.ndarray:
    """Small pictures of uint8 (C, h, w) in rows, a line between them: uint8 (C, H, W).

    Smaller ones, such as patches that the image's border cuts, lie in the middle of their place.
    """
    channels = max(len(each) for each in pictures)
    tall, wide = (max(each.shape[axis] for each in pictures) for axis in (1, 2))
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    whole = np.full((channels, rows * (tall + 1) - 1, columns * (wide + 1) - 1), paper, np.uint8)
    for place, each in enumerate(pictures):
        top = place // columns * (tall + 1) + (tall - each.shape[1]) // 2
        left = place % columns * (wide + 1) + (wide - each.shape[2]) // 2
        whole[:, top : top + each.shape[1], left : left + each.shape[2]] = each
    return whole


def _painted(share: np.ndarray, signed: bool) -> np.ndarray:
    """Numbers up to 1, from -1 with a sign, else from 0, as colours: uint8 (3, H, W)."""
    return np.stack([signed_pixels(share, 1.0)] * 3) if signed else heat(share)


def _grown(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask and all within `width` pixels of it, along rows, columns and diagonals."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * width + 1))).astype(bool)
