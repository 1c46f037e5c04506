"""The article's seven filters: what they are, and what they must leave exactly as it is."""

import numpy as np
import pytest
from scipy.signal import correlate2d

from gpuconv.filters import FILTERS, apply, named, to_pixels

# article.md's goldens, written out again
MATRICES = {
    "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "edge_1": [[1, 0, -1], [0, 0, 0], [-1, 0, 1]],
    "edge_2": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
    "edge_3": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "box_blur": [[1 / 9] * 3] * 3,
    "gaussian_blur": [[1 / 16, 2 / 16, 1 / 16], [2 / 16, 4 / 16, 2 / 16], [1 / 16, 2 / 16, 1 / 16]],
}
EDGES = ("edge_1", "edge_2", "edge_3")
KEEP_MEAN = ("identity", "sharpen", "box_blur", "gaussian_blur")
CONSTANTS = [
    np.uint8(0), np.uint8(1), np.uint8(77), np.uint8(255),
    np.float32(0.1), np.float32(1 / 3), np.float32(-2.7182817), np.float32(1e-38),
    np.float32(3.4e37), np.float32(1e-45),
    0.1, 1 / 3, -np.pi, 254.99999999999997, 1e-300, 5e-324, 1e300, -123456789.123456789,
]  # fmt: skip


def test_there_are_the_articles_seven():
    assert list(FILTERS) == list(MATRICES)
    for name, matrix in MATRICES.items():
        assert np.array_equal(FILTERS[name].matrix, matrix)


@pytest.mark.parametrize("value", CONSTANTS, ids=repr)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (7, 2)])
def test_a_constant_gives_exactly_0_on_edges_and_itself_on_the_others(value, shape):
    image = np.full(shape, value)
    for name in EDGES:
        assert np.array_equal(apply(image, name), np.zeros(shape)), name
    for name in KEEP_MEAN:
        assert np.array_equal(apply(image, name), image.astype(np.float64)), name


@pytest.mark.parametrize("seed", range(20))
def test_random_constants_too(seed):
    rng = np.random.default_rng(seed)
    image = np.full((1, 3, 3), rng.standard_normal() * 10.0 ** rng.integers(-20, 20))
    for name in FILTERS:
        expected = np.zeros_like(image) if name in EDGES else image
        assert np.array_equal(apply(image, name), expected), name


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_identity_is_bit_exact(dtype):
    rng = np.random.default_rng(1)
    image = (rng.random((3, 9, 8)) * 255).astype(dtype)
    result = apply(image, "identity")
    assert result.dtype == np.float64
    assert result.tobytes() == image.astype(np.float64).tobytes()


@pytest.mark.parametrize("name", MATRICES)
def test_agrees_with_scipy_on_the_replicated_border(name):
    rng = np.random.default_rng(2)
    image = rng.random((2, 6, 7))
    result = apply(image, name)
    for plane, came in zip(image, result, strict=True):
        wanted = correlate2d(np.pad(plane, 1, mode="edge"), MATRICES[name], mode="valid")
        np.testing.assert_allclose(came, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (5, 3), (4, 1)])
def test_any_matrix_keeps_the_size(shape):
    rng = np.random.default_rng(3)
    image, matrix = rng.random((1, 6, 5)), rng.standard_normal(shape)
    rows, columns = shape
    border = (((rows - 1) // 2, rows // 2), ((columns - 1) // 2, columns // 2))
    wanted = correlate2d(np.pad(image[0], border, mode="edge"), matrix, mode="valid")
    np.testing.assert_allclose(apply(image, matrix)[0], wanted, rtol=0, atol=1e-13)


def test_the_mean_of_an_image_is_kept_up_to_its_border():
    image = np.zeros((1, 12, 12))
    image[0, 3:9, 3:9] = np.random.default_rng(4).random((6, 6))
    for name in KEEP_MEAN:
        assert apply(image, name).mean() == pytest.approx(image.mean(), abs=1e-15), name


def test_to_pixels_clips_and_rounds_halves_to_even():
    result = to_pixels(np.array([-3.0, 0.5, 1.5, 254.6, 300.0]))
    assert result.dtype == np.uint8
    assert result.tolist() == [0, 0, 2, 255, 255]


def test_the_image_is_not_changed():
    image = np.random.default_rng(5).random((1, 4, 4))
    before = image.copy()
    apply(image, "sharpen")
    assert np.array_equal(image, before)


def test_wrong_input_is_refused():
    image = np.zeros((1, 3, 3))
    with pytest.raises(ValueError, match="did you mean 'sharpen'"):
        named("sharpn")
    with pytest.raises(ValueError, match=r"matrix \(R, S\), got shape \(3,\)"):
        apply(image, [1, 2, 3])
    with pytest.raises(ValueError, match="NaN or infinity"):
        apply(image, [[np.nan]])
    with pytest.raises(ValueError, match="the picture holds NaN"):
        apply(np.full((2, 2), np.inf), "identity")
    with pytest.raises(ValueError, match=r"\(C, H, W\) or \(H, W\)"):
        apply(np.zeros((1, 1, 3, 3)), "identity")
    with pytest.raises(ValueError, match="got bool"):
        apply(np.zeros((3, 3), bool), "identity")
