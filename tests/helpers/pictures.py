"""Pictures' files made by hand, and what they show, computed without Pillow."""

import struct
import zlib

import numpy as np


def chunk(kind, content):
    """A chunk of a PNG file."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width, height, depth, kind, rows, *chunks):
    """A PNG file from the bytes of its rows. kind: 0 gray, 2 colour, 4 and 6 with alpha."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def kernel(length, first, last, count):
    """The weights (count, length) with which the part of a signal from `first` to `last` becomes
    `count` points: each is the mean of what it covers, weighted by a triangle twice as wide.
    """
    step = (last - first) / count
    centres = first + (np.arange(count)[:, None] + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - centres) / max(step, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def scaled(plane, box, height, width):
    left, top, right, bottom = box
    rows, columns = plane.shape
    return kernel(rows, top, bottom, height) @ plane @ kernel(columns, left, right, width).T


def resized(pixels, height, width, how):
    """Pixels (C, H, W) brought to (C, height, width), as floats."""
    _, H, W = pixels.shape
    if (height, width) == (H, W):
        return pixels.astype(float)
    if how == "stretch":
        return np.array([scaled(plane, (0, 0, W, H), height, width) for plane in pixels])
    if how == "centre-crop":
        scale = min(W / width, H / height)
        w, h = width * scale, height * scale
        box = (W - w) / 2, (H - h) / 2, (W + w) / 2, (H + h) / 2
        return np.array([scaled(plane, box, height, width) for plane in pixels])
    scale = min(width / W, height / H)
    w, h = max(1, round(W * scale)), max(1, round(H * scale))
    top, left = (height - h) // 2, (width - w) // 2
    out = np.empty((len(pixels), height, width))
    for plane, shown in zip(pixels, out, strict=True):
        border = [*plane[0], *plane[-1], *plane[:, 0], *plane[:, -1]]
        shown[:] = np.floor(np.median(border))
        shown[top : top + h, left : left + w] = scaled(plane, (0, 0, W, H), h, w)
    return out
