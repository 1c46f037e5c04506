"""matplotlib, imported when something is drawn, without a window and without its global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuconv.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#222222", "#dddddd"


def figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches.

    Raises ImportError: how to get matplotlib where it is missing, and what it said where it is
    there but fails.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise ImportError(f"matplotlib is there but does not work: {error}") from error
        raise ImportError(
            'curves and confusion matrices need matplotlib: pip install "gpuconv[viz]"'
        ) from None
    except ImportError as error:
        raise ImportError(f"matplotlib is there but does not work: {error}") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all. OSError on failure."""
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=120, metadata={"Software": None})
    write_atomically(path, content.getvalue())
