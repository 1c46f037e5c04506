"""The one output-shape rule, against windows found by trying each start."""

import itertools

import loops
import numpy as np
import pytest

from gpuconv.shapes import Window


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_output_size_equals_brute_force_for_every_small_size(ceil_mode):
    checked = 0
    for size, kernel, stride, before, after, dilation in itertools.product(
        range(1, 10), range(1, 5), range(1, 4), range(3), range(3), range(1, 3)
    ):
        starts = loops.window_starts(size, kernel, stride, before, after, dilation, ceil_mode)
        window = Window(
            (1, kernel), (1, stride), ((0, 0), (before, after)), (1, dilation), ceil_mode
        )
        if starts:
            assert window.output_size(1, size) == (1, len(starts))
            checked += 1
        else:
            with pytest.raises(ValueError, match="does not fit"):
                window.output_size(1, size)
    assert checked > 1500


def test_taps_visit_each_product_once():
    window = Window((3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2))
    H, W = 6, 5
    rows, columns = loops.geometry((H, W), (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2))
    seen = np.zeros((len(rows), len(columns), H, W), int)
    for _, _, out, pixels in window.taps(H, W):
        p, q = np.mgrid[out[1], out[2]]
        h, v = np.mgrid[pixels[1], pixels[2]]
        seen[p, q, h, v] += 1
    expected = np.zeros_like(seen)
    for p, q, r, s in np.ndindex(len(rows), len(columns), 3, 2):
        h, v = rows[p] + r, columns[q] + 2 * s
        if 0 <= h < H and 0 <= v < W:
            expected[p, q, h, v] += 1
    assert (seen == expected).all()


@pytest.mark.parametrize(
    ("padding", "stride", "size", "expected"),
    [
        ("valid", 1, 7, 5),
        ("full", 1, 7, 9),
        ("same", 1, 7, 7),
        ("same", 2, 7, 4),
        ("same", 2, 8, 4),
        ("same", 3, 7, 3),
    ],
)
def test_named_padding(padding, stride, size, expected):
    assert Window(3, stride, padding).output_size(size, size) == (expected, expected)


def test_same_puts_the_odd_pixel_at_the_end():
    assert Window(2, padding="same").pads(5, 5) == ((0, 1), (0, 1))
    assert Window(4, 2, "same").pads(5, 5) == ((1, 2), (1, 2))


def test_ceil_mode_drops_a_window_that_starts_in_the_far_padding():
    assert Window(4, 4, 2, ceil_mode=True).output_size(9, 9) == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, "kernel_size must be at least 1"),
        ((3, 0), ValueError, "stride must be at least 1"),
        ((3, 1, -1), ValueError, "padding must be at least 0"),
        ((3, 1, 0, 0), ValueError, "dilation must be at least 1"),
        ((2.5,), TypeError, "kernel_size must be an int"),
        ((True,), TypeError, "kernel_size must be an int"),
        (((3, 3, 3),), TypeError, "pair of ints"),
        ((3, 1, "sane"), ValueError, '"same", "valid", "full"'),
        ((3, 1, ((1, 1),)), TypeError, "top, bottom"),
    ],
)
def test_impossible_windows_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        Window(*arguments)


def test_a_window_larger_than_the_image_says_what_to_do():
    with pytest.raises(ValueError, match=r"5x5.*does not fit an image of 4x9.*padding") as raised:
        Window(5).output_size(4, 9)
    assert "\n" not in str(raised.value)
