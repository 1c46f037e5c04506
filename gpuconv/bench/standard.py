"""A set of cases with every operation, for `gpuconv bench all`, the benchmarks and the GPU check.

The GPU check finds the kernels by what these launch.
"""

from __future__ import annotations

from gpuconv.bench.cases import OPERANDS, Case, parse

# n is the batch; 8n and so on are its multiples. Operations without a line here, such as those that
# work element by element, have one at the shape of USUAL.
IMAGES = """
conv2d                  n x 64 x 56 x 56     64 3x3 padding=1
conv2d                  n x 128 x 28 x 28    128 3x3 padding=1
conv2d                  n x 256 x 14 x 14    256 3x3 padding=1
conv2d                  n x 3 x 224 x 224    64 7x7 stride=2 padding=3
conv2d                  n x 64 x 56 x 56     256 1x1
conv2d                  n x 256 x 56 x 56    128 1x1 stride=2
conv2d                  n x 128 x 28 x 28    128 3x3 padding=1 groups=32
conv2d                  n x 64 x 56 x 56     64 3x3 padding=1 groups=64
conv2d                  n x 1 x 32 x 32      6 5x5
conv2d                  n x 6 x 14 x 14      16 5x5 activation=relu
conv2d_relu_max_pool2d  n x 1 x 32 x 32      6 5x5
conv2d_relu_max_pool2d  n x 6 x 14 x 14      16 5x5
max_pool2d              n x 64 x 112 x 112   2x2
max_pool2d              n x 64 x 112 x 112   3x3 stride=2 padding=1
avg_pool2d              n x 64 x 56 x 56     2x2
sum_pool2d              n x 64 x 56 x 56     2x2
adaptive_avg_pool2d     n x 512 x 14 x 14    1x1
adaptive_avg_pool2d     n x 256 x 13 x 13    6x6
local_response_norm     n x 96 x 55 x 55     5
add                     n x 64 x 56 x 56     activation=relu
batch_norm2d_track      64n
linear                  8n x 1024            1000
softmax                 64n x 1000
cross_entropy           64n x 1000
half_squared_error      64n x 1000
hinge                   64n x 1000
sgd                     64n x 4096
sgd_momentum            64n x 4096
adam                    64n x 4096
adam_amsgrad            64n x 4096
clip_grad_norm          64n x 4096
"""
USUAL = "nx64x56x56"


def standard(batch: int) -> list[Case]:
    """The set at this batch.

    >>> str(standard(2)[0])
    'conv2d 2x64x56x56 64 3x3 padding=1'
    """
    lines = [line.replace(" x ", "x").split() for line in IMAGES.strip().splitlines()]
    plain = {line[0] for line in lines if "activation=relu" not in line}
    lines += [[name, USUAL] for name in OPERANDS if name not in plain]
    return [parse([line[0], _sized(line[1], batch), *line[2:]]) for line in lines]


def _sized(shape: str, batch: int) -> str:
    """ "8nx1024" at batch 2 as "16x1024"."""
    first, _, rest = shape.partition("n")
    return f"{int(first or 1) * batch}{rest}"
