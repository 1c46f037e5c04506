"""Matrix products on the worker threads.

BLAS's threads poll for more work for milliseconds after a product, on the cores that the next
operation's threads need. So each product runs on one BLAS thread, side by side over the rows, or
the columns if there are more.
"""

from __future__ import annotations

from itertools import starmap

import numpy as np

from gpuconv.cpu.precision import sums_in_float64
from gpuconv.threads import blas_threads, parallel, shards

# With fewer multiply-adds another thread costs more than it saves: so many take 93 us on one thread
# and on two, half as many 51 and 82, twice as many 183 and 154.
GRAIN = 4_000_000

_one_thread = blas_threads(1)


def products(*factors: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """a @ b for each pair (rows, depth), (depth, columns) of one dtype, in any layout."""
    dtype = factors[0][0].dtype
    with _one_thread:
        if sums_in_float64(dtype):
            wide = [(a.astype(np.float64), b.astype(np.float64)) for a, b in factors]
            return [_product(a, b).astype(dtype) for a, b in wide]
        return list(starmap(_product, factors))


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b, as `products` computes it."""
    return products((a, b))[0]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (rows, depth), columns = a.shape, b.shape[1]
    product = np.empty((rows, columns), a.dtype)
    # over the longer side, for all pieces read the other factor: 8 rows times 9,216 x 4,096 weights
    # take 39 ms over the rows, 21 over the columns
    longer, shorter = (rows, columns) if rows >= columns else (columns, rows)
    pieces = shards(longer, -(-GRAIN // max(depth * shorter, 1)))
    if len(pieces) == 1:
        return np.matmul(a, b, out=product)
    if longer == rows:
        parallel(lambda i, j: np.matmul(a[i:j], b, out=product[i:j]), pieces)
    else:
        parallel(lambda i, j: np.matmul(a, b[:, i:j], out=product[:, i:j]), pieces)
    return product
