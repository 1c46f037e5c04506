"""Pictures of what a network does: learning curves, confusion matrices, sheets of filters.

`sheet` and `weight_panels` need Pillow alone; `curves` and `confusion` draw with matplotlib, the
extra `viz`, which is imported when they are called.
"""

from gpuconv.viz.confusion import confusion
from gpuconv.viz.curves import curves
from gpuconv.viz.sheet import Panel, sheet, weight_panels

__all__ = ["Panel", "confusion", "curves", "sheet", "weight_panels"]
