"""Losses, the mean over a batch: cross-entropy, the article's squared error, hinge.

Each forward operation returns the loss, a float, and the array that its backward operation needs.
Source: the article's "training using backpropagation"; torch.nn.functional.cross_entropy and
multi_margin_loss.
"""

from __future__ import annotations

import math

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.arrays import ShapeOnly, device_of
from gpuconv.cpu import losses as fast
from gpuconv.cpu.elementwise import contiguous
from gpuconv.ops.cost import Cost, moved, nbytes
from gpuconv.ops.op import Array, op, require_floats, require_rank, require_shape
from gpuconv.ops.softmax import softmax
from gpuconv.ops.softmax_launch import config_loss, config_loss_backward


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


def _require(labels, **scores):
    require_floats(**scores)
    require_rank(2, "(N, classes)", **scores)
    if device_of(labels) is None or labels.dtype.kind not in "iu":
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"labels must be an array of integers, got {kind}")
    (shape,) = (array.shape for array in scores.values())
    require_shape({"labels": shape[:1]}, labels=labels)


@half_squared_error.check
def half_squared_error_check(scores, labels):
    _require(labels, scores=scores)


@half_squared_error_backward.check
def half_squared_error_backward_check(probabilities, labels):
    _require(labels, probabilities=probabilities)


@hinge.check
def hinge_check(scores, labels, margin):
    _require(labels, scores=scores)
    number("margin", margin, above=0)


@hinge_backward.check
def hinge_backward_check(excess, labels):
    _require(labels, excess=excess)


@cross_entropy.check
def cross_entropy_check(scores, labels, *options):
    _require(labels, scores=scores)
    _require_options(scores, *options)


@cross_entropy_backward.check
def cross_entropy_backward_check(probabilities, labels, *options):
    _require(labels, probabilities=probabilities)
    _require_options(probabilities, *options)


def _require_options(scores, label_smoothing, weight, ignore_index):
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
def counted_labels_in_range(*arguments):
    """The same, but for the labels that are ignored."""
    scores, labels, _, _, ignore_index = arguments
    if isinstance(labels, np.ndarray):
        try:
            labels_in_range(scores, labels)
        except ValueError:  # only then is it worth a look at which labels are ignored
            labels_in_range(scores, labels[labels != ignore_index])


@cross_entropy.output
@half_squared_error.output
@hinge.output
def loss_output(scores, *others):
    return math.nan, ShapeOnly(scores.shape, scores.dtype)


@cross_entropy.cost
@half_squared_error.cost
@hinge.cost
def loss_cost(scores, labels, *options):
    """Scores and labels in, what backward needs and one number out."""
    return Cost(0, nbytes(scores, labels, scores) + scores.dtype.itemsize)


@cross_entropy_backward.cost
@half_squared_error_backward.cost
@hinge_backward.cost
def loss_backward_cost(*arguments):
    kept, labels = arguments[:2]
    return moved(kept, labels, kept)


@cross_entropy.cpu
def cross_entropy_cpu(scores, labels, label_smoothing, weight, ignore_index):
    p = np.empty(scores.shape, scores.dtype)
    options = float(label_smoothing), _weights(scores, weight), ignore_index
    return fast.cross_entropy(contiguous(scores), _numbers(labels), *options, p), p


@cross_entropy_backward.cpu
def cross_entropy_backward_cpu(probabilities, labels, label_smoothing, weight, ignore_index):
    dscores = np.empty(probabilities.shape, probabilities.dtype)
    options = float(label_smoothing), _weights(probabilities, weight), ignore_index
    fast.cross_entropy_backward(contiguous(probabilities), _numbers(labels), *options, dscores)
    return dscores


@half_squared_error.cpu
def half_squared_error_cpu(scores, labels):
    p = np.empty(scores.shape, scores.dtype)
    return fast.half_squared_error(contiguous(scores), _numbers(labels), p), p


@half_squared_error_backward.cpu
def half_squared_error_backward_cpu(probabilities, labels):
    dscores = np.empty(probabilities.shape, probabilities.dtype)
    fast.half_squared_error_backward(contiguous(probabilities), _numbers(labels), dscores)
    return dscores


def _numbers(labels):
    return contiguous(labels.astype(np.int64, copy=False))


def _weights(like, weight):
    """The classes' weights for compiled code: no elements stand for None."""
    return np.empty(0, like.dtype) if weight is None else contiguous(weight)


def _forward(runtime, name, saved, scores, labels, weight=None, **numbers):
    """(loss, what backward needs), by the forward kernel `name`_forward and its mean."""
    rows, classes = scores.shape
    given = rows, classes, str(labels.dtype), weight is not None
    config = config_loss(f"{name}_forward", *given)
    kept, loss = runtime.empty(scores.shape), runtime.empty(1)
    arrays = {"scores": runtime.contiguous(scores), "labels": runtime.contiguous(labels)}
    arrays |= _weight(runtime, name, weight, arrays["scores"])
    runtime.run(config, numbers, loss=loss, **{saved: kept}, **arrays)
    value = float(runtime.asnumpy(loss)[0])
    if np.isnan(value):  # a label out of range, or scores that were NaN
        known = runtime.asnumpy(labels)
        known = known[known != numbers["ignore"]] if "ignore" in numbers else known
        try:
            labels_in_range(scores, known)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return value, kept


def _backward(runtime, name, saved, kept, labels, weight=None, **numbers):
    given = *kept.shape, str(labels.dtype), weight is not None
    config = config_loss_backward(f"{name}_backward", *given)
    dscores, kept = runtime.empty(kept.shape), runtime.contiguous(kept)
    arrays = {"labels": runtime.contiguous(labels), saved: kept}
    arrays |= _weight(runtime, name, weight, kept)
    runtime.run(config, numbers, dscores=dscores, **arrays)
    return dscores


def _weight(runtime, name, weight, any_array):
    """The kernels' classes' weights, for which any array stands in where there are none."""
    if name != "cross_entropy":
        return {}
    return {"weight": any_array if weight is None else runtime.contiguous(weight)}


def _cross_entropy_numbers(classes, label_smoothing, weight, ignore_index):
    """The target of cross-entropy: `even` for every class, and `right` besides for the label."""
    return {
        "right": 1 - label_smoothing,
        "even": label_smoothing / classes,
        "ignore": ignore_index,
    }


@cross_entropy.launch
def cross_entropy_launch(runtime, scores, labels, *options):
    numbers = _cross_entropy_numbers(scores.shape[1], *options)
    given = "cross_entropy", "probabilities", scores, labels, options[1]
    return _forward(runtime, *given, **numbers)


@cross_entropy_backward.launch
def cross_entropy_backward_launch(runtime, probabilities, labels, *options):
    numbers = _cross_entropy_numbers(probabilities.shape[1], *options)
    given = "cross_entropy", "probabilities", probabilities, labels, options[1]
    return _backward(runtime, *given, **numbers)


@half_squared_error.launch
def half_squared_error_launch(runtime, scores, labels):
    return _forward(runtime, "half_squared_error", "probabilities", scores, labels)


@half_squared_error_backward.launch
def half_squared_error_backward_launch(runtime, probabilities, labels):
    return _backward(runtime, "half_squared_error", "probabilities", probabilities, labels)


@hinge.launch
def hinge_launch(runtime, scores, labels, margin):
    return _forward(runtime, "hinge", "excess", scores, labels, margin=margin)


@hinge_backward.launch
def hinge_backward_launch(runtime, excess, labels):
    return _backward(runtime, "hinge", "excess", excess, labels)
