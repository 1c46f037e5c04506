"""The filters of a convolution that links some pairs of channels only, and their gradient.

Source: LeCun et al. 1998, table I.
"""

from __future__ import annotations

import numpy as np

from gpuconv.arrays import ShapeOnly
from gpuconv.cuda import plan_channels
from gpuconv.ops.cost import Cost, nbytes
from gpuconv.ops.op import op, require_floats, require_rank


@op
def partial_filters(links, table):
    """w[k, c] = links[table[k, c]], 0 where that is -1: filters that `conv2d` takes.

    links: floats (links, R, S). table: int32 (K, C), the number of each pair's link or -1, each
    link's number once. Returns w (K, C, R, S), links' dtype.

    >>> partial_filters(np.ones((1, 1, 1)), np.int32([[-1, 0]])).tolist()
    [[[[0.0]], [[1.0]]]]
    """
    w = np.zeros((*table.shape, *links.shape[1:]), links.dtype)
    linked = table >= 0
    w[linked] = links[table[linked]]
    return w


@op
def partial_filters_backward(dw, places):
    """dlinks[t] = dw[k, c] with k*C + c = places[t].

    dw: floats (K, C, R, S). places: int32 (links,). Returns dlinks (links, R, S), dw's dtype.
    """
    return dw.reshape(-1, *dw.shape[2:])[places]


@partial_filters.check
def partial_filters_check(links, table):
    require_floats("partial_filters", links=links)
    require_rank("partial_filters", 3, "(links, R, S)", links=links)
    require_rank("partial_filters", 2, "(K, C)", table=table)
    _require_int32("partial_filters", table=table)


@partial_filters_backward.check
def partial_filters_backward_check(dw, places):
    require_floats("partial_filters_backward", dw=dw)
    require_rank("partial_filters_backward", 4, "(K, C, R, S)", dw=dw)
    require_rank("partial_filters_backward", 1, "(links)", places=places)
    _require_int32("partial_filters_backward", places=places)


def _require_int32(name, **arrays):
    for key, a in arrays.items():
        if a.dtype != np.int32:
            raise TypeError(f"{name}: {key} must be int32, got {a.dtype}")


@partial_filters.output
def partial_filters_output(links, table):
    return ShapeOnly((*table.shape, *links.shape[1:]), links.dtype)


@partial_filters.cost
def partial_filters_cost(links, table):
    taps = links.shape[1] * links.shape[2]
    return Cost(0, nbytes(links, table) + table.size * taps * links.dtype.itemsize)


@partial_filters_backward.cost
def partial_filters_backward_cost(dw, places):
    taps = dw.shape[2] * dw.shape[3]
    return Cost(0, nbytes(places) + 2 * places.size * taps * dw.dtype.itemsize)


@partial_filters.launch
def partial_filters_launch(runtime, links, table):
    (K, C), (count, R, S) = table.shape, links.shape
    w = runtime.empty((K, R, S, C))
    given = {"links": runtime.contiguous(links), "table": runtime.contiguous(table)}
    runtime.run(plan_channels.partial_filters(K, C, R * S, count), w=w, **given)
    return runtime.first_view(w)


@partial_filters_backward.launch
def partial_filters_backward_launch(runtime, dw, places):
    (K, C, R, S), (count,) = dw.shape, places.shape
    dlinks = runtime.empty((count, R, S))
    given = {"dw": runtime.channels_last(dw), "places": runtime.contiguous(places)}
    plan = plan_channels.partial_filters_backward(K, C, R * S, count)
    runtime.run(plan, dlinks=dlinks, **given)
    return dlinks
