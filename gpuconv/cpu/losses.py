"""Softmax and the losses over it: one pass over each example's scores."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled, inner


@inner
def softmax_row(scores, p):
    """p = softmax(scores) of one example; returns, in float64, the largest score m and
    log(sum(exp(scores - m))), which near 3e38 one number could not hold.
    """
    peak = -np.inf
    for score in scores:
        if score > peak:
            peak = score
    total = 0.0
    for j in range(scores.size):
        p[j] = np.exp(scores[j] - scores.dtype.type(peak))
        total += p[j]
    for j in range(scores.size):
        p[j] /= total
    return np.float64(peak), np.log(total)


@inner
def _weight(weights, label):
    return 1.0 if weights is None else weights[label]


@compiled
def cross_entropy(scores, labels, smoothing, weights, ignore, p):
    (n, classes), loss, total = scores.shape, 0.0, 0.0
    even = smoothing / classes
    for i in range(n):
        (peak, log_sum), label = softmax_row(scores[i], p[i]), labels[i]
        if label == ignore:
            continue
        weight = _weight(weights, label)
        total += weight
        if smoothing < 1 and weight != 0:  # what has no part in the target is no loss if infinite
            loss += (1 - smoothing) * weight * (log_sum + (peak - scores[i, label]))
        if smoothing > 0:
            for j in range(classes):
                part = even * _weight(weights, j)
                if part != 0:
                    loss += part * (log_sum + (peak - scores[i, j]))
        if log_sum != log_sum:
            loss = log_sum
    return loss / total if total != 0 else np.nan


@compiled
def cross_entropy_backward(p, labels, smoothing, weights, ignore, dscores):
    (n, classes), total = p.shape, 0.0
    even, sum_of_weights = smoothing / classes, 0.0 if weights is None else weights.sum()
    for i in range(n):
        if labels[i] != ignore:
            total += _weight(weights, labels[i])
    for i in range(n):
        label = labels[i]
        if label == ignore:
            dscores[i] = 0
            continue
        target = (1 - smoothing) * _weight(weights, label)
        share = 1.0 if weights is None else target + even * sum_of_weights
        for j in range(classes):
            dscores[i, j] = (p[i, j] * share - even * _weight(weights, j)) / total
        dscores[i, label] -= target / total


@compiled
def half_squared_error(scores, labels, p):
    loss = 0.0
    for i in range(len(scores)):
        softmax_row(scores[i], p[i])
        for j in range(scores.shape[1]):
            d = p[i, j] - (1.0 if j == labels[i] else 0.0)
            loss += d * d
    return loss / (2 * len(scores))


@compiled
def half_squared_error_backward(p, labels, dscores):
    n, classes = p.shape
    for i in range(n):
        inner = 0.0
        for j in range(classes):
            inner += p[i, j] * (p[i, j] - (1.0 if j == labels[i] else 0.0))
        for j in range(classes):
            d = p[i, j] - (1.0 if j == labels[i] else 0.0)
            dscores[i, j] = p[i, j] * (d - inner) / n
