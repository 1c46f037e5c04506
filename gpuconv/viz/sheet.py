"""Sheets of labelled pictures, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, LINE, FONT = 12, 15, 12
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet: uint8 (1, H, W) or (3, H, W), with a title and lines under it."""

    title: str
    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def sheet(panels: Sequence[Panel], columns: int = 4, size: int = 200) -> np.ndarray:
    """The panels in rows, each over its title and notes: uint8 (3, H, W), for `save_image`.

    Pictures smaller than `size` are magnified by a whole factor, pixel by pixel, so that none is
    blurred; larger ones stay as they are.
    Raises ValueError for no panels, and for pixels that are not uint8 (1 or 3, H, W).
    """
    if not panels:
        raise ValueError("a sheet needs at least one picture")
    pictures = [_picture(panel, size) for panel in panels]
    font = ImageFont.load_default(FONT)
    notes = max(len(panel.notes) for panel in panels)
    widest = max(int(font.getlength(text)) for p in panels for text in (p.title, *p.notes)) + 1
    wide = max(widest, *(picture.width for picture in pictures)) + MARGIN
    tall = max(picture.height for picture in pictures) + LINE * (1 + notes) + 2 * MARGIN
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    paper = Image.new("RGB", (columns * wide + MARGIN, rows * tall + MARGIN), PAPER)
    draw = ImageDraw.Draw(paper)
    for place, (panel, picture) in enumerate(zip(panels, pictures, strict=True)):
        x, y = MARGIN + place % columns * wide, MARGIN + place // columns * tall
        paper.paste(picture, (x, y))
        y += picture.height + MARGIN // 2
        draw.text((x, y), panel.title, INK, font)
        for line, note in enumerate(panel.notes, 1):
            draw.text((x, y + line * LINE), note, FAINT, font)
    return np.ascontiguousarray(np.asarray(paper).transpose(2, 0, 1))


def magnify(pixels: np.ndarray, size: int) -> np.ndarray:
    """(..., H, W) repeated by the whole factor that `sheet` takes for `size`."""
    factor = max(1, size // max(pixels.shape[-2:]))
    return pixels.repeat(factor, axis=-2).repeat(factor, axis=-1)


def weight_panels(weights: np.ndarray) -> list[Panel]:
    """A convolution's filters as pictures: gray is 0, white the largest weight, black minus that.

    weights: floats (K, C, R, S). Every filter has a scale of its own. Filters of three channels are
    in colour; others show each channel by itself.
    Raises ValueError for another shape.
    """
    if weights.ndim != 4 or weights.size == 0:
        raise ValueError(f"filters must be (K, C, R, S), got shape {weights.shape}")
    panels = []
    for k, one in enumerate(weights.astype(np.float64)):
        pixels = signed_pixels(one)
        parts = {f"filter {k}": pixels}
        if len(one) not in (1, 3):
            parts = {f"filter {k}, channel {c}": each for c, each in enumerate(pixels[:, None])}
        note = (f"white is {np.abs(one).max():.3f}",)
        panels += [Panel(title, each, note) for title, each in parts.items()]
    return panels


def signed_pixels(values: np.ndarray, most: float = 0.0) -> np.ndarray:
    """Numbers of either sign as uint8: gray at 0, white at `most`, black at minus that.

    most: 0 for the largest absolute value.
    """
    most = most or float(np.abs(values).max()) or 1.0
    return np.rint(np.clip(127.5 + values / most * 127.5, 0, 255)).astype(np.uint8)


def _picture(panel: Panel, size: int) -> Image.Image:
    pixels = np.asarray(panel.pixels)
    if pixels.ndim != 3 or len(pixels) not in (1, 3) or not pixels.size or pixels.dtype != np.uint8:
        raise ValueError(
            f"{panel.title}: a sheet's picture must be uint8 (1, H, W) or (3, H, W) and not "
            f"empty, got {pixels.dtype} {pixels.shape}"
        )
    larger = magnify(pixels, size)
    return Image.fromarray(
        np.ascontiguousarray(np.broadcast_to(larger, (3, *larger.shape[1:])).transpose(1, 2, 0))
    )
