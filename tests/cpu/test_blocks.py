"""Containers of the larger models: blocks, heads and joined passes, as whole networks."""

import loops
import numpy as np
import pytest

from gpuconv import models, nn, optim
from gpuconv.nn import init
from gpuconv.nn.summary import summary
from gpuconv.train.finite import first_broken_layer


def network():
    """Every container, with batch norm, small enough for central differences."""
    block = nn.Sequential(norm=nn.BatchNorm2d(4), relu=nn.ReLU(), conv=nn.Conv2d(4, 2, 1))
    wider = nn.Sequential(norm=nn.BatchNorm2d(6), relu=nn.ReLU(), conv=nn.Conv2d(6, 2, 1))
    body = nn.Sequential(conv1=nn.Conv2d(8, 4, 3, 2, 1, bias=False), bn1=nn.BatchNorm2d(4))
    around = nn.Sequential(nn.Conv2d(8, 4, 1, 2), nn.BatchNorm2d(4))
    return nn.AuxiliaryHeads(
        {"aux1": "dense"},
        stem=nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        lrn=nn.LocalResponseNorm(3, 0.5),
        dense=nn.DenseBlock(first=block, second=wider),
        block=nn.Sequential(**{"": nn.Residual(body, around, ("", "down")), "relu": nn.ReLU()}),
        same=nn.Residual(nn.Identity()),
        aux1=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        pool=nn.AdaptiveAvgPool2d((2, 1)),
        flat=nn.Flatten(),
        fc=nn.Linear(8, 3),
    )


def make(device="reference", dtype=np.float64):
    made = network()
    init.initialize(made, 3)
    return made.to(device, dtype)


X = np.random.default_rng(0).standard_normal((3, 2, 5, 6))
LABELS = np.array([0, 2, 1])


def test_every_gradient_equals_central_differences_on_both_devices():
    made, loss, x = make(), nn.AuxiliaryLoss(), X.copy()

    def objective():
        return loss.forward(made.forward(x), LABELS)

    objective()
    dx = made.backward(loss.backward())
    np.testing.assert_allclose(dx[:1], loops.central_difference(objective, x[:1]), 1e-4, 1e-7)
    for name, parameter in made.named_parameters():
        part = parameter.data[:2]
        difference = loops.central_difference(objective, part)
        np.testing.assert_allclose(parameter.grad[:2], difference, 1e-4, 1e-7, err_msg=name)
    fast, loss = make("cpu"), nn.AuxiliaryLoss()
    loss.forward(fast.forward(X), LABELS)
    np.testing.assert_allclose(fast.backward(loss.backward()), dx, 1e-8, 1e-11)
    for (name, found), exact in zip(fast.named_parameters(), made.parameters(), strict=True):
        np.testing.assert_allclose(found.grad, exact.grad, 1e-8, 1e-11, err_msg=name)


def test_cpu_in_float32_agrees_and_joined_passes_change_nothing():
    results = []
    for device, fusing in (("reference", True), ("cpu", True), ("cpu", False)):
        made, loss = make(device, np.float32), nn.AuxiliaryLoss()
        for _, layer in made.layers():
            if isinstance(layer, nn.Sequential):
                layer.fusing = fusing
        x = X.astype(np.float32)
        value = loss.forward(made.forward(x), LABELS)
        dx = made.backward(loss.backward())
        results.append([value, dx, *[p.grad for p in made.parameters()], made.eval().infer(x)])
    for expected, joined, apart in zip(*results, strict=True):
        np.testing.assert_allclose(joined, expected, 1e-3, 1e-5)
        np.testing.assert_array_equal(joined, apart)


def test_names_of_a_block_without_a_name_are_those_of_its_children():
    keys = list(make().state_dict())
    assert "block.conv1.weight" in keys
    assert "block.down.0.bias" in keys
    assert "dense.second.norm.running_var" in keys
    assert not any(".." in key or key.startswith(".") for key in keys)
    rows = [row.name for row in summary(make(), (2, 5, 6)).rows]
    assert rows.index("aux1.2") < rows.index("block.conv1")
    assert "block.relu" in rows


def test_heads_speak_in_training_only():
    made = make("cpu", np.float32)
    x = X.astype(np.float32)
    scores = made.forward(x)
    assert [each.shape for each in scores] == [(3, 3), (3, 3)]
    y = made.eval().forward(x)
    assert y.shape == (3, 3)
    np.testing.assert_array_equal(made.infer(x), y)
    loss = nn.AuxiliaryLoss()
    made.forward(x)
    assert loss.forward(y, LABELS) == nn.CrossEntropyLoss().forward(y, LABELS)
    assert made.backward(loss.backward()).shape == x.shape
    with pytest.raises(RuntimeError, match="call forward first"):
        loss.backward()


def test_the_auxiliary_loss_is_the_weighted_sum():
    rng = np.random.default_rng(1)
    scores = tuple(rng.standard_normal((3, 3, 4)).astype(np.float32))
    single = nn.CrossEntropyLoss(label_smoothing=0.1)
    values, gradients = [], []
    for each in scores:
        values.append(single.forward(each, LABELS))
        gradients.append(single.backward())
    loss = nn.AuxiliaryLoss(nn.CrossEntropyLoss(label_smoothing=0.1), weight=0.5)
    assert loss.forward(scores, LABELS) == pytest.approx(values[0] + 0.5 * sum(values[1:]))
    for found, expected, weight in zip(loss.backward(), gradients, (1, 0.5, 0.5), strict=True):
        np.testing.assert_allclose(found, weight * expected, 1e-6)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_nothing_is_kept_after_backward_nor_by_infer(device):
    made = make(device, np.float32)
    x = X.astype(np.float32)
    made.infer(x)
    assert all(layer._saved is None for _, layer in made.layers())
    loss = nn.AuxiliaryLoss()
    loss.forward(made.forward(x), LABELS)
    made.backward(loss.backward())
    assert all(layer._saved is None for _, layer in made.layers())


def test_gradients_that_are_views_of_dy_are_not_written_to():
    dy = np.ones((2, 3, 4, 4), np.float32)
    for block in (nn.Residual(nn.Identity()), nn.Residual(nn.Dropout(0.0), nn.Identity())):
        block.forward(dy)
        np.testing.assert_array_equal(block.backward(dy), 2 * dy)
        np.testing.assert_array_equal(dy, np.ones_like(dy))
    block = nn.Concat(nn.Identity(), nn.Identity())
    block.forward(dy)
    np.testing.assert_array_equal(block.backward(np.ones((2, 6, 4, 4), np.float32)), 2 * dy)


def test_the_first_broken_layer_is_named_within_blocks_and_heads():
    made = make("cpu", np.float32)
    made["dense"]["second"]["norm"].weight.data[0] = np.inf
    name, layer, _ = first_broken_layer(made, X.astype(np.float32))
    assert name == "dense.second.norm"
    assert isinstance(layer, nn.BatchNorm2d)
    assert all(layer.fusing for _, layer in made.layers() if isinstance(layer, nn.Sequential))


def test_training_with_heads_from_a_checkpoint_goes_on(tmp_path):
    import gpuconv

    def step(model, optimizer):
        loss = nn.AuxiliaryLoss()
        optimizer.zero_grad()
        loss.forward(model.forward(x), labels)
        model.backward(loss.backward(), need_dx=False)
        optimizer.step()

    x = np.random.default_rng(2).standard_normal((2, 3, 32, 32)).astype(np.float32)
    labels = np.array([1, 0])
    model = models.googlenet(num_classes=2, aux=True, input_size=32)
    step(model, optim.SGD(model.parameters(), lr=0.01))
    gpuconv.save(model, tmp_path / "model.safetensors")
    again = gpuconv.load(tmp_path / "model.safetensors")
    assert again.spec == model.spec
    assert again.input_shape == (3, 32, 32)
    np.testing.assert_array_equal(again.eval().infer(x), model.eval().infer(x))
    assert again.state_dict()["conv1.bn.num_batches_tracked"] == 1


def test_impossible_blocks_are_refused():
    shrinking = nn.DenseBlock(a=nn.Conv2d(2, 3, 3))
    with pytest.raises(ValueError, match="a changes the image's size"):
        shrinking.output_shape((2, 5, 5))
    with pytest.raises(ValueError, match="with 3 channels"):
        nn.BatchNorm2d(3).output_shape((4, 5, 5))
    with pytest.raises(ValueError, match="num_features must be at least 1"):
        nn.BatchNorm2d(0)
