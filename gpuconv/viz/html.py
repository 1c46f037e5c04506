"""Tables and pictures as HTML, for notebooks. All text is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from gpuconv.viz.sheet import magnify, signed_pixels

SHOWN, MAX_MAPS, MAP_SIZE = 12, 16, 64  # rows and columns of a table; maps, and their pixels


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; columns of numbers are the browser's to align."""

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    head = f"<thead>{row(header, 'th')}</thead>" if header else ""
    return f"<table>{head}<tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody></table>"


def paragraph(text: str) -> str:
    """Text with its lines and spaces as they are."""
    return f"<pre>{escape(text)}</pre>"


def array(values: np.ndarray) -> str:
    """An array's numbers as a table, up to two axes, or as pictures of its maps, its last two axes:
    gray at 0, white and black at the largest absolute value of all. What is left out is said.
    """
    if values.ndim < 3 or values.dtype.kind != "f":
        return _numbers(values.reshape(-1, *values.shape[-1:])) if values.ndim else ""
    maps = values.reshape(-1, *values.shape[-2:])
    finite = np.nan_to_num(maps.astype(np.float64), posinf=0, neginf=0)
    most = float(np.abs(finite).max()) if finite.size else 0.0
    shown = "".join(_picture(signed_pixels(each, most)) for each in finite[:MAX_MAPS] if each.size)
    left = len(maps) - MAX_MAPS
    return shown + (f" and {left:,} more maps" if left > 0 else "")


def _numbers(values: np.ndarray) -> str:
    rows, columns = len(values), values.shape[1] if values.ndim > 1 else 0
    cells = [[f"{each:.4g}" for each in row[:SHOWN]] for row in values[:SHOWN].tolist()]
    if columns > SHOWN:
        cells = [[*row, "..."] for row in cells]
    note = f"{rows:,} rows of {columns:,}" if max(rows, columns) > SHOWN else ""
    return table((), cells) + note


def _picture(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(magnify(pixels, MAP_SIZE)).save(file, "PNG")
    code = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" style="display:inline;margin:2px" src="data:image/png;base64,{code}">'
