"""Held-out accuracy, the confusion matrix, and the worst mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import ops
from gpuconv.page.session import Session, picture

if TYPE_CHECKING:
    from gpuconv.data import Loader

MISTAKES = 12


def evaluate(session: Session, held: Loader) -> dict[str, Any]:
    """The session's network on all pictures of a loader that does not shuffle.

    "confusion": counts, a row for each true class and a column for each answer; "mistakes": the
    wrong answers with the least probability for the truth, worst first: "pixels" as the page draws
    them, "label", "answer", "sure" (the answer's probability). "accuracy", "images".
    """
    dataset = held.dataset
    shares, labels = [], []
    for x, y in held:
        with np.errstate(all="ignore"):
            shares.append(ops.softmax(session.scores(x)))
        labels.append(y)
    p, truth = np.concatenate(shares), np.concatenate(labels)
    answers = p.argmax(axis=1)
    classes = p.shape[1]
    pairs = np.bincount(truth * classes + answers, minlength=classes**2)
    of_truth = np.nan_to_num(p[np.arange(len(truth)), truth])
    wrong = np.flatnonzero(answers != truth)
    worst = wrong[np.argsort(of_truth[wrong], kind="stable")][:MISTAKES]
    return {
        "confusion": pairs.reshape(classes, classes).tolist(),
        "accuracy": float((answers == truth).mean()),
        "images": len(truth),
        "mistakes": [
            {
                **picture(dataset.images[i]),
                "label": int(truth[i]),
                "answer": int(answers[i]),
                "sure": float(p[i, answers[i]]),
            }
            for i in worst
        ],
    }
