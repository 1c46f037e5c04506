"""Local response norm: the definition against loops, PyTorch and differences; `cpu` against it."""

import cases
import loops
import numpy as np
import pytest
from bounds import response_terms

from gpuconv import nn, ops

SWEEP = 40
U32, U64 = 2.0**-24, 2.0**-53


def case(seed):
    """x, size, alpha, beta, k, convention: even and odd sizes, wider than the channels, strips."""
    rng = np.random.default_rng([22, seed])
    H, W = (int(rng.integers(1, 9)), int(rng.integers(1, 9))) if seed % 4 else (13, 21)
    x = rng.standard_normal((int(rng.integers(1, 4)), int(rng.integers(1, 12)), H, W)) * 3
    size, convention = int(rng.integers(1, 8)), ("torch", "paper")[seed % 2]
    return (
        x,
        size,
        float(rng.random()),
        [0.75, 0.75, 0.5, 1.3][seed % 4],
        1.0 + seed % 3,
        convention,
    )


def by_loops(x, size, alpha, beta, k, convention):
    a = alpha / size if convention == "torch" else alpha
    y = np.empty(x.shape)
    for n, c, h, w in np.ndindex(x.shape):
        around = range(max(0, c - size // 2), min(x.shape[1], c + (size - 1) // 2 + 1))
        total = sum(float(x[n, j, h, w]) ** 2 for j in around)
        y[n, c, h, w] = float(x[n, c, h, w]) / (k + a * total) ** beta
    return y


@pytest.mark.parametrize("seed", range(SWEEP))
def test_definition_and_cpu_agree_with_loops(seed):
    arguments = case(seed)
    exact = by_loops(*arguments)
    np.testing.assert_allclose(ops.local_response_norm.reference(*arguments), exact, 1e-13)
    np.testing.assert_allclose(ops.local_response_norm(*arguments), exact, 1e-13)
    x = arguments[0].astype(np.float32)
    y = ops.local_response_norm(x, *arguments[1:])
    assert y.dtype == np.float32
    # beta times the sum's relative error, and a few roundings of the power: all terms positive
    bound = ((arguments[1] + 4) * arguments[3] + 8) * U32
    np.testing.assert_allclose(y, by_loops(x, *arguments[1:]), bound, 1e-37)


@pytest.mark.parametrize("seed", range(SWEEP))
def test_cpu_gradients_agree_with_the_definition(seed):
    x, size, alpha, beta, k, convention = case(seed)
    dy = np.random.default_rng(seed).standard_normal(x.shape)
    tail = size, alpha, beta, k, convention
    exact = ops.local_response_norm_backward.reference(dy, x, *tail)
    np.testing.assert_allclose(ops.local_response_norm_backward(dy, x, *tail), exact, 1e-11, 1e-13)
    dy4, x4 = dy.astype(np.float32), x.astype(np.float32)
    found = ops.local_response_norm_backward(dy4, x4, *tail)
    assert found.dtype == np.float32
    absolute = response_terms(dy4.astype(np.float64), x4.astype(np.float64), *tail)
    exact = ops.local_response_norm_backward.reference(
        dy4.astype(np.float64), x4.astype(np.float64), *tail
    )
    bound = (2 * (size + 4) * (beta + 1) + 16) * U32 * absolute
    assert (np.abs(found - exact) <= bound + 1e-37).all()


@pytest.mark.parametrize("seed", range(8))
def test_gradients_equal_central_differences(seed):
    x, *tail = case(seed)
    x = x[:1, :, :3, :3].copy()
    dy = np.random.default_rng(seed).standard_normal(x.shape)
    found = ops.local_response_norm_backward.reference(dy, x, *tail)
    difference = loops.central_difference(
        lambda: float((dy * ops.local_response_norm.reference(x, *tail)).sum()), x
    )
    np.testing.assert_allclose(found, difference, 1e-5, 1e-6)


def test_the_papers_alpha_is_torchs_over_the_size():
    x = np.random.default_rng(0).standard_normal((2, 9, 3, 4))
    paper = ops.local_response_norm(x, 5, 1e-4, 0.75, 2.0, "paper")
    np.testing.assert_allclose(paper, ops.local_response_norm(x, 5, 5e-4, 0.75, 2.0), 1e-14)
    layer = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0, "paper").to("reference")
    np.testing.assert_allclose(layer(x).data, paper, 1e-14)
    assert "convention=paper" in layer.extra_repr()


@pytest.mark.parametrize("layout", ["reversed", "strided", "fortran", "read-only"])
def test_layouts_do_not_matter(layout):
    x, dy = np.random.default_rng(1).standard_normal((2, 2, 7, 5, 6)).astype(np.float32)
    y, dx = ops.local_response_norm(x, 5), ops.local_response_norm_backward(dy, x, 5)
    x2, dy2 = (cases.disguises(a)[layout] for a in (x, dy))
    np.testing.assert_array_equal(ops.local_response_norm(x2, 5), y)
    np.testing.assert_array_equal(ops.local_response_norm_backward(dy2, x2, 5), dx)


def test_an_empty_batch_is_empty_and_wrong_arguments_are_refused():
    x = np.ones((0, 3, 4, 4), np.float32)
    assert ops.local_response_norm(x, 5).shape == x.shape
    for arguments, text in (
        ((np.ones((2, 3, 4)), 5), "4 axes"),
        ((np.ones((2, 3, 4, 4)), 0), "size must be at least 1"),
        ((np.ones((2, 3, 4, 4)), 5, 1e-4, 0.75, 0.0), "k must be a finite number > 0"),
        ((np.ones((2, 3, 4, 4)), 5, 1e-4, 0.75, 1.0, "caffe"), 'must be "torch" or "paper"'),
    ):
        with pytest.raises(ValueError, match=text):
            ops.local_response_norm(*arguments)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(12))
def test_definition_equals_pytorch(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, size, alpha, beta, k, _ = case(seed)
    t = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.local_response_norm(t, size, alpha, beta, k)
    dy = np.random.default_rng(seed).standard_normal(x.shape)
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(
        ops.local_response_norm.reference(x, size, alpha, beta, k), y.detach(), 1e-12
    )
    dx = ops.local_response_norm_backward.reference(dy, x, size, alpha, beta, k)
    np.testing.assert_allclose(dx, t.grad, 1e-10, 1e-12)
