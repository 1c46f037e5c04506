"""A pass through a network, as arrays."""

from gpuconv.autograd import Tensor, no_grad


def training_pass(model, loss, x, labels):
    """(loss, scores, dx) of one forward and backward pass: a number, an array or a tuple of them,
    and the input's gradient; the parameters have theirs.
    """
    given = Tensor(x, requires_grad=True, device=model.device)
    scores = model(given)
    value = loss(scores, labels)
    value.backward()
    several = isinstance(scores, tuple)
    return float(value), tuple(s.data for s in scores) if several else scores.data, given.grad


def scores_of(model, x):
    """The output's array, or a tuple of them; nothing is kept for backward."""
    with no_grad():
        y = model(x)
    return tuple(part.data for part in y) if isinstance(y, tuple) else y.data
