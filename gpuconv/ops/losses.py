"""Losses, the mean over a batch: cross-entropy, the article's squared error, hinge.

Each forward operation returns the loss, a float, and the array that its backward operation needs.
Source: the article's "training using backpropagation"; torch.nn.functional.cross_entropy and
multi_margin_loss.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.arrays import ShapeOnly, device_of, is_device
from gpuconv.cpu import losses as fast
from gpuconv.cpu.elementwise import contiguous
from gpuconv.ops.cost import Cost, nbytes
from gpuconv.ops.op import Array, op, require_floats, require_rank, require_shape
from gpuconv.ops.softmax import softmax
from gpuconv.ops.softmax_launch import (
    config_loss,
    config_loss_and_gradient,
    config_loss_backward,
    few,
)


@op
def cross_entropy(
    scores: Array,
    labels: Array,
    label_smoothing: float = 0.0,
    weight: Array = None,
    ignore_index: int = -100,
) -> tuple[Array, ...]:
    """The mean of -sum(target * log(softmax(scores))), from the scores, so that nothing overflows.

    scores: floats (N, classes). labels: integers (N,) in [0, classes), or ignore_index for examples
    that do not count. The target is 1 for the label, or with label_smoothing e in [0, 1]: 1 - e for
    the label plus e/classes for every class; times the class's weight, floats (classes,), 1 each
    for None. The sum is divided by the sum of weight[label] over the examples that count.
    Returns (loss, probabilities): a float, 0 for an empty batch and NaN where no example counts,
    and (N, classes).
    """
    if len(scores) == 0:
        return 0.0, scores.copy()
    target, total = _target(scores, labels, label_smoothing, weight, ignore_index)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        wide = scores.astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        losses = target * (np.log(np.exp(wide).sum(axis=1, keepdims=True)) - wide)
        losses[(target == 0) & ~np.isnan(losses).all(axis=1, keepdims=True)] = 0  # not 0 * infinity
        loss = losses[labels != ignore_index].sum() / total
    return float(loss), softmax.definition(scores)


@op
def cross_entropy_backward(
    probabilities: Array,
    labels: Array,
    label_smoothing: float = 0.0,
    weight: Array = None,
    ignore_index: int = -100,
) -> Array:
    """dscores = (probabilities * sum(target) - target) / (sum of weight[label]); 0 where ignored.

    probabilities: as `cross_entropy` returned them; the rest as it had it.
    """
    target, total = _target(probabilities, labels, label_smoothing, weight, ignore_index)
    share = 1 if weight is None else target.sum(axis=1, keepdims=True)
    counts = (labels != ignore_index)[:, None]
    dscores = np.zeros_like(probabilities)
    return np.divide(probabilities * share - target, total, out=dscores, where=counts)


@op
def loss_and_gradient(
    scores: Array,
    labels: Array,
    label_smoothing: float = 0.0,
    weight: Array = None,
    ignore_index: int = -100,
) -> tuple[Array, ...]:
    """(loss, dscores): what `cross_entropy` and `cross_entropy_backward` give, at once."""
    options = label_smoothing, weight, ignore_index
    loss, probabilities = cross_entropy.definition(scores, labels, *options)
    return loss, cross_entropy_backward.definition(probabilities, labels, *options)


def one_launch(scores: Array) -> bool:
    """Whether `loss_and_gradient` is faster than its parts: on a device, few scores."""
    if isinstance(scores, np.ndarray) or not is_device(device_of(scores)):
        return False
    return scores.ndim == 2 and few(*scores.shape)


def _target(like, labels, label_smoothing, weight, ignore_index):
    """What cross-entropy aims at, (N, classes), 0 for ignored examples; and what it divides by."""
    counts, classes = labels != ignore_index, like.shape[1]
    rows, known = np.flatnonzero(counts), labels[counts]
    target = np.zeros_like(like)
    target[rows] = label_smoothing / classes
    target[rows, known] += 1 - label_smoothing
    if weight is None:
        return target, like.dtype.type(len(rows))
    return target * weight, weight[known].sum()


@op
def half_squared_error(scores: Array, labels: Array) -> tuple[Array, ...]:
    """The article's total error over a softmax: the mean of sum(1/2 (target - probability)^2).

    scores: floats (N, classes). labels: integers (N,) in [0, classes).
    Returns (loss, probabilities): a float, 0 for an empty batch, and (N, classes).
    """
    p = softmax.definition(scores)
    d = p - _one_hot(p, labels)
    return float((d * d).sum() / (2 * max(len(p), 1))), p


@op
def half_squared_error_backward(probabilities: Array, labels: Array) -> Array:
    """dscores = p * (d - sum(p * d)) / N with d = p - target, through the softmax."""
    p = probabilities
    d = p - _one_hot(p, labels)
    return p * (d - (p * d).sum(axis=1, keepdims=True)) / max(len(p), 1)


@op
def hinge(scores: Array, labels: Array, margin: float = 1.0) -> tuple[Array, ...]:
    """The multi-class hinge loss of a support vector machine.

    The mean over the batch of the sum over j != label of
    max(0, margin - scores[label] + scores[j]) / classes.
    scores: floats (N, classes). labels: integers (N,) in [0, classes).
    Returns (loss, excess): a float, 0 for an empty batch, and the (N, classes) terms of the sum.
    """
    n, classes = scores.shape
    rows = np.arange(n)
    excess = np.maximum(0, margin - scores[rows, labels][:, None] + scores)
    excess[rows, labels] = 0
    return float(excess.sum() / max(n * classes, 1)), excess


@op
def hinge_backward(excess: Array, labels: Array) -> Array:
    """dscores: 1/(N*classes) for every positive term's class, minus their sum for the label."""
    n, classes = excess.shape
    dscores = (excess > 0).astype(excess.dtype)
    dscores[np.arange(n), labels] = -dscores.sum(axis=1)
    return dscores / max(n * classes, 1)


def _one_hot(like, labels):
    target = np.zeros_like(like)
    target[np.arange(len(labels)), labels] = 1
    return target


LOSSES = (  # forward, backward, and what one keeps for the other
    (cross_entropy, cross_entropy_backward, "probabilities"),
    (half_squared_error, half_squared_error_backward, "probabilities"),
    (hinge, hinge_backward, "excess"),
)


def _check(name, *arguments):
    """TypeError or ValueError unless these are the scores, or what `name` says, and labels."""
    array, labels = arguments[:2]
    require_floats(**{name: array})
    require_rank(2, "(N, classes)", **{name: array})
    if device_of(labels) is None or labels.dtype.kind not in "iu":
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"labels must be an array of integers, got {kind}")
    require_shape({"labels": array.shape[:1]}, labels=labels)


def _cost(numbers, *arguments):
    """Scores and labels in, what backward needs out; or that and labels in, the gradient out."""
    array, labels = arguments[:2]
    return Cost(0, nbytes(array, labels, array) + numbers * array.dtype.itemsize)


def _output(scores, *others):
    return math.nan, ShapeOnly(scores.shape, scores.dtype)


for _forward, _backward, _kept in LOSSES:
    _forward.check(partial(_check, "scores"))
    _backward.check(partial(_check, _kept))
    _forward.output(_output)
    _forward.cost(partial(_cost, 1))
    _backward.cost(partial(_cost, 0))


@hinge.check
def hinge_check(scores, labels, margin):
    number("margin", margin, above=0)


loss_and_gradient.check(partial(_check, "scores"))
loss_and_gradient.cost(partial(_cost, 1))


@cross_entropy.check
@cross_entropy_backward.check
@loss_and_gradient.check
def cross_entropy_check(*arguments):
    scores, _, label_smoothing, weight, ignore_index = arguments
    number("label_smoothing", label_smoothing, 0, 1)
    whole("ignore_index", ignore_index, -(2**63), 2**63 - 1)
    require_floats(("weight",), scores=scores, weight=weight)
    require_shape({"weight": scores.shape[1:]}, weight=weight)


@half_squared_error.check_values
@half_squared_error_backward.check_values
@hinge.check_values
@hinge_backward.check_values
def labels_in_range(*arguments):
    """ValueError for a label that is no class; a device's labels are not read for it.

    The kernels give NaN for such a label, and only then are a device's labels looked at.
    """
    classes, labels = arguments[0].shape[1], arguments[1]
    if not isinstance(labels, np.ndarray) or not len(labels):
        return
    if not (labels.min() >= 0 and labels.max() < classes):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(
            f"label {wrong} is out of range: {classes} classes are numbered 0 to {classes - 1}"
        )


@cross_entropy.check_values
@cross_entropy_backward.check_values
@loss_and_gradient.check_values
def counted_labels_in_range(*arguments):
    """The same, but for the labels that are ignored."""
    scores, labels, _, _, ignore_index = arguments
    if isinstance(labels, np.ndarray):
        try:
            labels_in_range(scores, labels)
        except ValueError:  # only then is it worth a look at which labels are ignored
            labels_in_range(scores, labels[labels != ignore_index])


def _compiled_forward(function, scores, labels, *options):
    p = np.empty(scores.shape, scores.dtype)
    given = contiguous(scores), _numbers(labels), *_plain(*options)
    return function(*given, p), p


def _compiled_backward(function, *arguments):
    probabilities, labels, *options = arguments
    dscores = np.empty(probabilities.shape, probabilities.dtype)
    function(contiguous(probabilities), _numbers(labels), *_plain(*options), dscores)
    return dscores


def _numbers(labels):
    return contiguous(labels.astype(np.int64, copy=False))


def _plain(*options):
    """The options as compiled code takes them."""
    if not options:
        return ()
    label_smoothing, weight, ignore_index = options
    return float(label_smoothing), None if weight is None else contiguous(weight), ignore_index


cross_entropy.cpu(partial(_compiled_forward, fast.cross_entropy))
cross_entropy_backward.cpu(partial(_compiled_backward, fast.cross_entropy_backward))
half_squared_error.cpu(partial(_compiled_forward, fast.half_squared_error))
half_squared_error_backward.cpu(partial(_compiled_backward, fast.half_squared_error_backward))


def _launch_forward(name, saved, runtime, scores, labels, *options):
    """(loss, what is saved): by the forward kernel `name`_forward and its mean, what backward
    needs; or "dscores", by the one kernel for both.
    """
    scores = runtime.contiguous(scores)
    weighted, numbers, arrays = _for_kernels(runtime, name, scores, options)
    shape = *scores.shape, str(labels.dtype), weighted
    if saved == "dscores":
        config = config_loss_and_gradient(*shape)
    else:
        config = config_loss(f"{name}_forward", *shape)
    kept, loss = runtime.empty(scores.shape), runtime.empty(1)
    arrays |= {"scores": scores, "labels": runtime.contiguous(labels), saved: kept}
    runtime.run(config, numbers, loss=loss, **arrays)
    value = runtime.scalar(loss)
    if np.isnan(value):  # a label out of range, or scores that were NaN
        known = runtime.read(labels)
        known = known[known != numbers["ignore"]] if "ignore" in numbers else known
        try:
            labels_in_range(scores, known)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return value, kept


def _launch_backward(name, saved, runtime, *arguments):
    kept, labels, *options = arguments
    kept = runtime.contiguous(kept)
    weighted, numbers, arrays = _for_kernels(runtime, name, kept, options)
    config = config_loss_backward(f"{name}_backward", *kept.shape, str(labels.dtype), weighted)
    dscores = runtime.empty(kept.shape)
    arrays |= {"labels": runtime.contiguous(labels), saved: kept}
    runtime.run(config, numbers, dscores=dscores, **arrays)
    return dscores


def _for_kernels(runtime, name, like, options):
    """(whether classes have weights, numbers, arrays) of a loss's options for its kernels."""
    if name != "cross_entropy":
        return False, {"margin": options[0]} if options else {}, {}
    label_smoothing, weight, ignore_index = options
    # of the target, `even` is for every class, `right` besides for the label
    target = {"right": 1 - label_smoothing, "even": label_smoothing / like.shape[1]}
    weights = like if weight is None else runtime.contiguous(weight)  # read only if there are any
    return weight is not None, {**target, "ignore": ignore_index}, {"weight": weights}


loss_and_gradient.launch(partial(_launch_forward, "cross_entropy", "dscores"))
for _forward, _backward, _kept in LOSSES:
    _forward.launch(partial(_launch_forward, _forward.__name__, _kept))
    _backward.launch(partial(_launch_backward, _forward.__name__, _kept))
