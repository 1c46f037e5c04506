"""The shapes that the benchmarks and the comparison with PyTorch measure."""

# name: (N, C, H, W), (K, R, S), stride, padding
CONVOLUTIONS = {
    "3x3, 64 channels": ((16, 64, 56, 56), (64, 3, 3), 1, 1),
    "3x3, 128 channels": ((16, 128, 28, 28), (128, 3, 3), 1, 1),
    "3x3, 256 channels": ((16, 256, 14, 14), (256, 3, 3), 1, 1),
    "7x7/2 from 3 channels": ((16, 3, 224, 224), (64, 7, 7), 2, 3),
    "1x1, 64 to 256": ((16, 64, 56, 56), (256, 1, 1), 1, 0),
    "1x1, 256 to 64": ((16, 256, 56, 56), (64, 1, 1), 1, 0),
    "1x1, 512 to 128": ((16, 512, 28, 28), (128, 1, 1), 1, 0),
    "1x1, 256 to 1024": ((16, 256, 14, 14), (1024, 1, 1), 1, 0),
}

# name: (N, C, H, W), kernel, stride, padding
POOLS = {
    "max-pool 2x2": ((16, 64, 112, 112), 2, 2, 0),
    "max-pool 3x3/2": ((16, 64, 112, 112), 3, 2, 1),
}

LENET_BATCHES = (64, 128)
