"""Losses, the mean over a batch: cross-entropy, the article's squared error, hinge.

Each forward operation returns the loss, a float, and the array that its backward operation needs.
Source: the article's "training using backpropagation"; torch.nn.functional.cross_entropy and
multi_margin_loss.
"""

from __future__ import annotations

import math

import numpy as np

from gpuconv.arguments import number
from gpuconv.arrays import ShapeOnly, device_of
from gpuconv.cpu import losses as fast
from gpuconv.cpu.elementwise import contiguous
from gpuconv.ops.cost import Cost, moved, nbytes
from gpuconv.ops.op import Array, op, require_floats, require_rank, require_shape
from gpuconv.ops.softmax import softmax
from gpuconv.ops.softmax_launch import config_loss, config_rowwise


@op
def cross_entropy(scores: Array, labels: Array, label_smoothing: float = 0.0) -> tuple[Array, ...]:
    """The mean of -sum(target * log(softmax(scores))), from the scores, so that nothing overflows.

    scores: floats (N, classes). labels: integers (N,) in [0, classes). The target is 1 for the
    label, or with label_smoothing e: 1 - e for the label plus e/classes for every class.
    Returns (loss, probabilities): a float, 0 for an empty batch, and (N, classes).
    """
    if len(scores) == 0:
        return 0.0, scores.copy()
    peak = scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scores - peak).sum(axis=1)) + peak[:, 0]
    right = scores[np.arange(len(labels)), labels]
    aim = (1 - label_smoothing) * right + label_smoothing * scores.mean(axis=1)
    return float(np.mean(log_sum - aim)), softmax.definition(scores)


@op
def cross_entropy_backward(
    probabilities: Array, labels: Array, label_smoothing: float = 0.0
) -> Array:
    """dscores = (probabilities - target) / N.

    probabilities: as `cross_entropy` returned them; the rest as it had it.
    """
    n, classes = probabilities.shape
    target = np.full_like(probabilities, label_smoothing / classes)
    target[np.arange(n), labels] += 1 - label_smoothing
    return (probabilities - target) / max(n, 1)


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


def _require(name, scores, labels):
    require_floats(name, scores=scores)
    require_rank(name, 2, "(N, classes)", scores=scores)
    if device_of(labels) is None or labels.dtype.kind not in "iu":
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{name}: labels must be an array of integers, got {kind}")
    require_shape(name, {"labels": scores.shape[:1]}, labels=labels)


def _require_range(name, labels, classes):
    """ValueError for a label that is no class; a device's labels are not read for it.

    The kernels give NaN for such a label, and only then are a device's labels looked at.
    """
    if not isinstance(labels, np.ndarray):
        return
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(
            f"{name}: label {wrong} is out of range: "
            f"{classes} classes are numbered 0 to {classes - 1}"
        )


@cross_entropy.check
def cross_entropy_check(scores, labels, label_smoothing):
    _require("cross_entropy", scores, labels)
    _require_smoothing("cross_entropy", label_smoothing)


@cross_entropy.check_values
def cross_entropy_check_values(scores, labels, label_smoothing):
    _require_range("cross_entropy", labels, scores.shape[1])


@cross_entropy_backward.check
def cross_entropy_backward_check(probabilities, labels, label_smoothing):
    _require("cross_entropy_backward", probabilities, labels)
    _require_smoothing("cross_entropy_backward", label_smoothing)


@cross_entropy_backward.check_values
def cross_entropy_backward_check_values(probabilities, labels, label_smoothing):
    _require_range("cross_entropy_backward", labels, probabilities.shape[1])


def _require_smoothing(name, label_smoothing):
    number(f"{name}: label_smoothing", label_smoothing, 0, 1)


@half_squared_error.check
def half_squared_error_check(scores, labels):
    _require("half_squared_error", scores, labels)


@half_squared_error.check_values
def half_squared_error_check_values(scores, labels):
    _require_range("half_squared_error", labels, scores.shape[1])


@half_squared_error_backward.check
def half_squared_error_backward_check(probabilities, labels):
    _require("half_squared_error_backward", probabilities, labels)


@half_squared_error_backward.check_values
def half_squared_error_backward_check_values(probabilities, labels):
    _require_range("half_squared_error_backward", labels, probabilities.shape[1])


@hinge.check
def hinge_check(scores, labels, margin):
    _require("hinge", scores, labels)
    number("hinge: margin", margin, above=0)


@hinge.check_values
def hinge_check_values(scores, labels, margin):
    _require_range("hinge", labels, scores.shape[1])


@hinge_backward.check
def hinge_backward_check(excess, labels):
    _require("hinge_backward", excess, labels)


@hinge_backward.check_values
def hinge_backward_check_values(excess, labels):
    _require_range("hinge_backward", labels, excess.shape[1])


def _cost(scores, labels):
    """Scores and labels in, what backward needs and one number out."""
    return Cost(0, nbytes(scores, labels, scores) + scores.dtype.itemsize)


@cross_entropy.output
def cross_entropy_output(scores, labels, label_smoothing):
    return math.nan, ShapeOnly(scores.shape, scores.dtype)


@half_squared_error.output
def half_squared_error_output(scores, labels):
    return math.nan, ShapeOnly(scores.shape, scores.dtype)


@hinge.output
def hinge_output(scores, labels, margin):
    return math.nan, ShapeOnly(scores.shape, scores.dtype)


@cross_entropy.cost
def cross_entropy_cost(scores, labels, label_smoothing):
    return _cost(scores, labels)


@half_squared_error.cost
def half_squared_error_cost(scores, labels):
    return _cost(scores, labels)


@hinge.cost
def hinge_cost(scores, labels, margin):
    return _cost(scores, labels)


@cross_entropy_backward.cost
def cross_entropy_backward_cost(probabilities, labels, label_smoothing):
    return moved(probabilities, labels, probabilities)


@half_squared_error_backward.cost
def half_squared_error_backward_cost(probabilities, labels):
    return moved(probabilities, labels, probabilities)


@hinge_backward.cost
def hinge_backward_cost(excess, labels):
    return moved(excess, labels, excess)


@cross_entropy.cpu
def cross_entropy_cpu(scores, labels, label_smoothing):
    p = np.empty(scores.shape, scores.dtype)
    return fast.cross_entropy(contiguous(scores), _numbers(labels), float(label_smoothing), p), p


@cross_entropy_backward.cpu
def cross_entropy_backward_cpu(probabilities, labels, label_smoothing):
    dscores = np.empty(probabilities.shape, probabilities.dtype)
    given = contiguous(probabilities), _numbers(labels), float(label_smoothing)
    fast.cross_entropy_backward(*given, dscores)
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


def _forward(runtime, name, saved, scores, labels, **numbers):
    """(loss, what backward needs), by the forward kernel `name`_forward and its mean."""
    rows, classes = scores.shape
    config = config_loss(f"{name}_forward", rows, classes, str(labels.dtype))
    kept, loss = runtime.empty(scores.shape), runtime.empty(1)
    arrays = {"scores": runtime.contiguous(scores), "labels": runtime.contiguous(labels)}
    runtime.run(config, numbers, loss=loss, **{saved: kept}, **arrays)
    value = float(runtime.asnumpy(loss)[0])
    if np.isnan(value):  # a label out of range, or scores that were NaN
        _require_range(name, runtime.asnumpy(labels), scores.shape[1])
    return value, kept


def _backward(runtime, name, saved, kept, labels, **numbers):
    rows, classes = kept.shape
    config = config_rowwise(f"{name}_backward", rows, classes, str(labels.dtype))
    dscores, labels = runtime.empty(kept.shape), runtime.contiguous(labels)
    arrays = {"labels": labels, saved: runtime.contiguous(kept)}
    runtime.run(config, numbers, dscores=dscores, **arrays)
    return dscores


def _smoothing(label_smoothing, classes):
    """The target of cross-entropy: `even` for every class, and `right` besides for the label."""
    return {"right": 1 - label_smoothing, "even": label_smoothing / classes}


@cross_entropy.launch
def cross_entropy_launch(runtime, scores, labels, label_smoothing):
    numbers = _smoothing(label_smoothing, scores.shape[1])
    return _forward(runtime, "cross_entropy", "probabilities", scores, labels, **numbers)


@cross_entropy_backward.launch
def cross_entropy_backward_launch(runtime, probabilities, labels, label_smoothing):
    numbers = _smoothing(label_smoothing, probabilities.shape[1])
    return _backward(runtime, "cross_entropy", "probabilities", probabilities, labels, **numbers)


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
