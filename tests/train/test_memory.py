"""The measured memory of a training step: between what must be held and what may be."""

import numpy as np
import pytest

from gpuconv import models, nn, optim
from gpuconv.nn.summary import summary
from gpuconv.train import peak_memory


@pytest.mark.parametrize("batch", [2, 16])
def test_it_is_above_the_bound_and_grows_with_the_batch(batch):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 32 * 32, 5),
    )  # fmt: skip
    before = {name: array.copy() for name, array in model.state_dict().items()}
    masks, model[1].training = model[3].rng_state, False
    bound = summary(model, (3, 32, 32)).training_bytes(batch)
    found = peak_memory(model, batch, (3, 32, 32))
    assert bound < found < 3 * bound + 4e6
    twice = peak_memory(model, 2 * batch, (3, 32, 32))
    held = found - bound
    assert found + batch * 16 * 32 * 32 * 4 < twice < 2 * found + held
    after = model.state_dict()
    assert all(np.array_equal(after[name], array) for name, array in before.items())
    assert model[3].rng_state == masks
    assert not model[1].training
    assert model[0].training
    assert all(p.grad is None for p in model.parameters())


def test_adam_holds_another_array_of_each_parameter():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 500))
    size = 4 * sum(p.size for p in model.parameters())
    momentum = peak_memory(model, 2, (3, 32, 32))
    adam = peak_memory(model, 2, (3, 32, 32), optim.Adam)
    assert abs(adam - momentum - size) < 0.05 * size
    assert abs(momentum - 3 * size) < 0.05 * size


def test_models_with_several_heads_and_what_is_refused():
    assert peak_memory(models.googlenet(num_classes=3), 1) > 50e6
    with pytest.raises(ValueError, match="give input_shape"):
        peak_memory(nn.Linear(2, 2), 1)
