"""Pictures of what a network does: learning curves, confusion matrices, sheets of filters.

`sheet` and the panels need Pillow alone; `curves` and `confusion` draw with matplotlib, the
extra `viz`, which is imported when they are called.
"""

from gpuconv.viz.attribution import attribution_panel, outlined_panel
from gpuconv.viz.figures import confusion, curves
from gpuconv.viz.sheet import Panel, sheet, weight_panels

__all__ = [
    "Panel",
    "attribution_panel",
    "confusion",
    "curves",
    "outlined_panel",
    "sheet",
    "weight_panels",
]
