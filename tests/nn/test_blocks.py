"""Residual, dense and joined blocks with batch norm, and auxiliary heads, as one network."""

import loops
import numpy as np
import pytest
from passes import scores_of, training_pass

import gpuconv
from gpuconv import models, nn, optim
from gpuconv.nn import init
from gpuconv.train.finite import first_broken_layer

X = np.random.default_rng(0).standard_normal((3, 2, 5, 6))
LABELS = np.array([0, 2, 1])


class Network(nn.Module):
    """Small enough for central differences."""

    def __init__(self):
        super().__init__()
        first = nn.Sequential(norm=nn.BatchNorm2d(4), relu=nn.ReLU(), conv=nn.Conv2d(4, 2, 1))
        second = nn.Sequential(norm=nn.BatchNorm2d(6), relu=nn.ReLU(), conv=nn.Conv2d(6, 2, 1))
        body = nn.Sequential(conv1=nn.Conv2d(8, 4, 3, 2, 1, bias=False), bn1=nn.BatchNorm2d(4))
        shortcut = nn.Sequential(nn.Conv2d(8, 4, 1, 2), nn.BatchNorm2d(4))
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.lrn = nn.LocalResponseNorm(3, 0.5)
        self.dense = nn.DenseBlock(2, first=first, second=second)
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        self.block = nn.Sequential(nn.Residual(body, shortcut), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d((2, 1))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.dense(self.lrn(self.stem(x)))
        beside = [self.aux(x)] if self.training else []
        scores = self.fc(self.pool(self.block(x)).flatten(1))
        return (scores, *beside) if beside else scores


def make(device="reference", dtype=np.float64):
    made = Network()
    init.initialize(made, 3)
    return made.to(device, dtype)


def test_every_gradient_equals_central_differences_on_both_devices():
    made, loss, x = make(), nn.AuxiliaryLoss(), X.copy()

    def objective():
        return float(loss(made(x), LABELS))

    _, _, dx = training_pass(made, loss, x, LABELS)
    np.testing.assert_allclose(dx[:1], loops.central_difference(objective, x[:1]), 1e-4, 1e-7)
    for name, parameter in made.named_parameters():
        part = parameter.data[:2]
        difference = loops.central_difference(objective, part)
        np.testing.assert_allclose(parameter.grad[:2], difference, 1e-4, 1e-7, err_msg=name)
    fast = make("cpu")
    _, _, again = training_pass(fast, nn.AuxiliaryLoss(), X, LABELS)
    np.testing.assert_allclose(again, dx, 1e-8, 1e-11)
    for (name, value), exact in zip(fast.named_parameters(), made.parameters(), strict=True):
        np.testing.assert_allclose(value.grad, exact.grad, 1e-8, 1e-11, err_msg=name)


def test_cpu_in_float32_agrees_and_fusion_changes_no_bit():
    results = []
    for device, fusing in (("reference", True), ("cpu", True), ("cpu", False)):
        made = make(device, np.float32)
        made.fusing = fusing
        x = X.astype(np.float32)
        value, _, dx = training_pass(made, nn.AuxiliaryLoss(), x, LABELS)
        grads = [p.grad for p in made.parameters()]
        results.append([value, dx, *grads, scores_of(made.eval(), x)])
    for expected, fused, apart in zip(*results, strict=True):
        np.testing.assert_allclose(fused, expected, 1e-3, 1e-5)
        np.testing.assert_array_equal(fused, apart)


def test_heads_speak_in_training_only():
    made, x = make("cpu", np.float32), X.astype(np.float32)
    assert [each.shape for each in made(x)] == [(3, 3), (3, 3)]
    y = made.eval()(x)
    assert y.shape == (3, 3)
    alone = nn.CrossEntropyLoss()(y, LABELS)
    assert float(nn.AuxiliaryLoss()(y, LABELS)) == float(alone)


def test_the_auxiliary_loss_is_the_weighted_sum():
    rng = np.random.default_rng(1)
    scores = tuple(rng.standard_normal((3, 3, 4)).astype(np.float32))
    single = nn.CrossEntropyLoss(label_smoothing=0.1)
    values, gradients = [], []
    for each in scores:
        given = nn.Tensor(each, requires_grad=True)
        loss = single(given, LABELS)
        loss.backward()
        values.append(float(loss))
        gradients.append(given.grad)
    given = tuple(nn.Tensor(each, requires_grad=True) for each in scores)
    loss = nn.AuxiliaryLoss(nn.CrossEntropyLoss(label_smoothing=0.1), weight=0.5)(given, LABELS)
    assert float(loss) == pytest.approx(values[0] + 0.5 * sum(values[1:]))
    loss.backward()
    for tensor, expected, weight in zip(given, gradients, (1, 0.5, 0.5), strict=True):
        np.testing.assert_allclose(tensor.grad, weight * expected, 1e-6)


def test_the_first_broken_layer_is_named_within_blocks():
    made = make("cpu", np.float32)
    made.dense["second"].norm.weight.data[0] = np.inf
    name, layer, _ = first_broken_layer(made, X.astype(np.float32))
    assert name == "dense.second.norm"
    assert isinstance(layer, nn.BatchNorm2d)


def test_training_with_heads_from_a_checkpoint_goes_on(tmp_path):
    x = np.random.default_rng(2).standard_normal((2, 3, 32, 32)).astype(np.float32)
    model = models.googlenet(num_classes=2, aux=True, input_size=32)
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    nn.AuxiliaryLoss()(model(x), np.array([1, 0])).backward()
    optimizer.step()
    gpuconv.save(model, tmp_path / "model.safetensors")
    again = gpuconv.load(tmp_path / "model.safetensors")
    assert again.spec == model.spec
    assert again.input_shape == (3, 32, 32)
    np.testing.assert_array_equal(scores_of(again.eval(), x), scores_of(model.eval(), x))
    assert again.state_dict()["conv1.bn.num_batches_tracked"] == 1


def test_impossible_blocks_are_refused():
    shrinking = nn.DenseBlock(3, nn.Conv2d(2, 3, 3))
    with pytest.raises(ValueError, match="does not fit behind 2 of 5 channels"):
        nn.output_shape(shrinking, (2, 5, 5))
    with pytest.raises(ValueError, match="w must have shape"):
        nn.output_shape(nn.BatchNorm2d(3), (4, 5, 5))
    with pytest.raises(ValueError, match="num_features must be at least 1"):
        nn.BatchNorm2d(0)
