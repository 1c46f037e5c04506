"""Softmax and the losses over it: one pass over each example's scores."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled


@compiled
def softmax_row(scores, p):
    """p = softmax(scores) of one example; returns log(sum(exp(scores))) in float64."""
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
    return peak + np.log(total)


@compiled
def cross_entropy(scores, labels, smoothing, p):
    loss = 0.0
    for i in range(len(scores)):
        log_sum = softmax_row(scores[i], p[i])
        loss += log_sum - (1 - smoothing) * scores[i, labels[i]]
        if smoothing > 0:
            loss -= smoothing * scores[i].mean()
    return loss / len(scores)


@compiled
def cross_entropy_backward(p, labels, smoothing, dscores):
    n, classes = p.shape
    for i in range(n):
        for j in range(classes):
            dscores[i, j] = (p[i, j] - smoothing / classes) / n
        dscores[i, labels[i]] -= (1 - smoothing) / n


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
