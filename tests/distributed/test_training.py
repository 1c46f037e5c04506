"""Training on several ranks gives what one process gives for the same batches."""

import numpy as np
import pytest
import ranks
import ranks_training

from gpuconv import nn, optim
from gpuconv.distributed import part

# Relative to each array's largest magnitude, after three steps. In float32 the parts' sums round
# differently from the whole batch's.
BOUND = {"reference": 1e-12, "cpu": 1e-5, "sim": 1e-5}
FP16_BOUND = 0.02  # a part's gradients are rounded before they are summed
FAST = "reference-sync", "cpu-sync", "cpu-local-plain", "reference-none-fp16"
EVERY = (
    *("reference-none", "reference-sync", "reference-sync-weighted", "reference-local-plain"),
    *("cpu-none", "cpu-sync", "cpu-sync-weighted", "cpu-local-plain", "sim-none", "sim-sync"),
    *("reference-none-fp16", "reference-sync-fp16", "sim-none-fp16"),
)
SETS = [pytest.param((2, FAST), id="2")] + [
    pytest.param((count, EVERY), id=f"{count} of all", marks=pytest.mark.slow)
    for count in (2, 3, 4)
]


@pytest.fixture(scope="module", params=SETS)
def trained(request, tmp_path_factory):
    """(ranks, {case: each rank's arrays})."""
    count, cases = request.param
    folder = tmp_path_factory.mktemp("ranks")
    ranks.run_ranks(count, ranks_training.__file__, folder, *cases)
    return count, {
        case: [dict(np.load(folder / f"{case}.{rank}.npz")) for rank in range(count)]
        for case in cases
    }


def require_close(case, found, expected):
    bound = FP16_BOUND if "fp16" in case else BOUND[case.partition("-")[0]]
    assert expected
    for name, array in expected.items():
        error = np.abs(found[name] - array)
        assert (error <= bound * np.abs(array).max()).all(), (case, name, error.max())


def test_ranks_train_as_one_process(trained):
    count, found = trained
    for case, of_ranks in found.items():
        if "local" in case:
            expected = emulated(case, count)
        else:
            expected = ranks_training.run(case)
            assert found[case][0].keys() == expected.keys()
        for one in of_ranks:
            require_close(case, one, expected)


def test_ranks_have_equal_bits(trained):
    for of_ranks in trained[1].values():
        for other in of_ranks[1:]:
            for name, array in of_ranks[0].items():
                np.testing.assert_array_equal(other[name], array)


def test_ranks_skip_the_same_steps_in_fp16(trained):
    """The first batch's gradients overflow: the scale is halved, and the two good steps that follow
    double it.
    """
    for case, of_ranks in trained[1].items():
        if "fp16" in case:
            for one in of_ranks:
                scale = ranks_training.SCALE[case.split("-")[1]]
                np.testing.assert_array_equal(one["scale"], [scale, 1])


def test_counts_are_exact(trained):
    """Accuracies of training and validation are counts over the number of images."""
    for case, of_ranks in trained[1].items():
        accuracies = of_ranks[0]["last"][[1, 3]] * ranks_training.IMAGES
        np.testing.assert_allclose(accuracies, np.round(accuracies), rtol=0, atol=1e-9)
        if "local" not in case:
            alone = ranks_training.run(case)["last"][[1, 3]] * ranks_training.IMAGES
            np.testing.assert_array_equal(np.round(accuracies), np.round(alone))


def emulated(case, count):
    """One process that does what so many ranks do, batch norm with each part's statistics: the
    parts one after the other, the loss and the running statistics their weighted means.
    """
    trainer, batches = ranks_training.trainer_of(case)
    model, optimizer, criterion = trainer.model, trainer.optimizer, trainer.loss
    source = batches.batches(0) if hasattr(batches, "batches") else batches
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    running = [b for norm in norms for b in (norm.running_mean, norm.running_var)]
    model.train()
    for x, labels in source:
        optimizer.zero_grad()
        before = [holder.data.copy() for holder in running]
        means = [np.zeros_like(array, np.float64) for array in before]
        for rank in range(count):
            own = part(len(x), rank, count)
            share = len(labels[own]) / len(labels)
            for holder, array in zip(running, before, strict=True):
                holder.data[...] = array
            if share:
                loss = criterion(model(x[own]), labels[own]) * share
                loss.backward()
            for mean, holder in zip(means, running, strict=True):
                mean += share * holder.data
        for holder, mean in zip(running, means, strict=True):
            holder.data[...] = mean
        optim.clip_grad_norm(optimizer.params, trainer.clip_norm)
        optimizer.step()
    state = {name: np.array(a) for name, a in model.state_dict().items()}
    return {name: a for name, a in state.items() if "num_batches" not in name}


@pytest.mark.slow
def test_two_runs_have_equal_bits(trained, tmp_path):
    count, found = trained
    ranks.run_ranks(count, ranks_training.__file__, tmp_path, *found)
    for case, of_ranks in found.items():
        again = np.load(tmp_path / f"{case}.0.npz")
        for name, array in of_ranks[0].items():
            np.testing.assert_array_equal(again[name], array)
