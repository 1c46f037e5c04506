"""Layers and containers on device sim: branches, dense blocks, heads, running statistics, state."""

import numpy as np
import pytest
from passes import scores_of, training_pass
from simulated import sim  # noqa: F401  skips where the simulator cannot run

import gpuconv
from gpuconv import models, nn, optim
from gpuconv.arrays import device_of, to_device, to_numpy
from gpuconv.autograd import Node, Tensor
from gpuconv.cuda.runtime import runtime
from gpuconv.strides import channels_last

SHAPE = (3, 3, 9, 11)
# Sums of a few hundred terms, ten layers deep, batch norm over 150 values: some hundred roundings
# of numbers of order 1. No ReLU or window of these inputs is so near its edge.
CLOSE = 1e-5


def conv(before, after, kernel=3, **more):
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False, rng=after, **more),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def dense(channels):
    """Batch norm first, which reads its channels in place."""
    last = nn.Conv2d(channels, 6, 3, padding=1, bias=False, rng=channels)
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), last)


class Network(nn.Module):
    """A little of everything that the zoo is made of; channels in fours and not."""

    def __init__(self):
        super().__init__()
        table = np.random.default_rng(3).random((28, 12)) < 0.5
        self.stem = conv(3, 8, stride=(2, 1))
        self.norm = nn.LocalResponseNorm(5, 0.1, 0.75, 2.0, "paper")
        self.drop = nn.Dropout(0.3, seed=5)
        self.joined = nn.Concat(conv(8, 7, 1), nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(8, 3)))
        self.aux = nn.Sequential(
            nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(60, 5, rng=7), nn.Tanh()
        )
        self.dense = nn.DenseBlock(6, dense(10), dense(16), dense(22))
        self.around = nn.Sequential(nn.Residual(conv(28, 28)), nn.ReLU())
        self.linked = nn.Conv2d(28, 12, 3, connections=table, rng=9)
        self.last = nn.Sequential(nn.BatchNorm2d(12, affine=False), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(12, 5, rng=8)

    def forward(self, x):
        x = self.joined(self.drop(self.norm(self.stem(x))))
        beside = [self.aux(x)] if self.training else []
        x = self.last(self.linked(self.around(self.dense(x))))
        scores = self.fc(x.flatten(1))
        return (scores, *beside) if beside else scores


def train(device, dtype, steps=2):
    """The network after some steps of Adam, with each step's loss, scores, dx and gradients."""
    model, loss = Network().to(device, dtype), nn.AuxiliaryLoss()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    rng, seen = np.random.default_rng(1), []
    for _ in range(steps):
        optimizer.zero_grad()
        x = to_device(rng.standard_normal(SHAPE).astype(dtype), device)
        labels = to_device(np.array([0, 4, 2]), device)
        value, scores, dx = training_pass(model, loss, x, labels)
        seen.append([np.array(value), *map(to_numpy, scores), to_numpy(dx)])
        seen[-1] += [to_numpy(p.grad) for p in model.parameters()]
        optimizer.step()
    return model, seen


def test_everything_trains_as_on_the_reference_and_repeats_its_bits():
    model, seen = train("sim", np.float32)
    _, again = train("sim", np.float32)
    other, expected = train("reference", np.float64)
    for one, same in zip(seen, again, strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one, same, strict=True))
    # The first step's: Adam then divides each gradient by itself, so that roundings decide signs.
    one, right = seen[0], expected[0]
    largest = max(np.abs(a).max() for a in right[4:])
    for number, (a, b) in enumerate(zip(one, right, strict=True)):
        size = np.abs(b).max() if number < 4 else largest
        assert np.abs(a - b).max() <= CLOSE * size, number
    state, right = model.state_dict(), other.state_dict()
    for key, array in state.items():
        if key.endswith("num_batches_tracked"):
            assert array == right[key] == 2
            assert array.dtype == np.int64


def test_running_statistics_follow_the_reference():
    found = []
    for device, dtype in (("sim", np.float32), ("reference", np.float64)):
        model = Network().to(device, dtype)
        for seed in range(3):
            x = np.random.default_rng(seed).standard_normal(SHAPE).astype(dtype)
            model(to_device(x, device))
        found.append(model.state_dict())
        x = to_device(np.ones(SHAPE, dtype), device)
        found[-1] |= {"scores": to_numpy(scores_of(model.eval(), x))}
        found[-1] |= {"forward": model(x).numpy()}
    for key, right in found[1].items():
        assert np.abs(found[0][key] - right).max() <= CLOSE * max(1, np.abs(right).max()), key


def test_state_moves_between_devices():
    model, _ = train("sim", np.float32, 1)
    state = model.state_dict()
    assert {type(a) for a in state.values()} == {np.ndarray}
    for _, holder in model.named_parameters() + model.named_buffers():
        counter = holder.data.dtype == np.int64
        assert device_of(holder.data) == ("cpu" if counter else "sim")
    other = Network()
    other.load_state_dict(state)
    there = Network().to("sim")
    there.load_state_dict(state)
    for again in (other, there, other.to("sim"), there.to("cpu"), there.to("sim")):
        for key, array in again.state_dict().items():
            np.testing.assert_array_equal(array, state[key])
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    scores = [to_numpy(scores_of(m.eval(), to_device(x, "sim"))) for m in (model, other, there)]
    assert scores[0].tobytes() == scores[1].tobytes() == scores[2].tobytes()


def test_a_saved_model_is_loaded_onto_a_device(tmp_path):
    model = models.resnet18(num_classes=3, stem="small").to("sim")
    model.bn1.running_mean.data = to_device(np.arange(64, dtype=np.float32), "sim")
    model.bn1.num_batches_tracked.data += 7
    gpuconv.save(model, tmp_path / "model.safetensors")
    loaded = gpuconv.load(tmp_path / "model.safetensors").to("sim").state_dict()
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(loaded[key], array)


def test_a_dense_block_keeps_its_image_once_and_reads_it_in_place():
    block = nn.DenseBlock(6, dense(8), dense(14)).to("sim")
    x = to_device(np.random.default_rng(0).standard_normal((2, 8, 5, 5)).astype(np.float32), "sim")
    on = runtime("sim")
    before = dict(on.ran)
    y = block(Tensor(x, requires_grad=True))
    assert channels_last(y.data)
    kept = read_by_batch_norms(y)
    assert [a.shape[1] for a in kept] == [8, 14]
    assert {on.address(a) for a in kept} == {on.address(y.data)}
    ran = {k: n - before.get(k, 0) for k, n in on.ran.items() if n != before.get(k, 0)}
    assert ran.get("copy_channels") == 3  # x and the two layers' outputs; no input of a layer
    y.backward(y.data)


def read_by_batch_norms(y):
    """What the batch norms behind y have saved of their inputs, the first first."""
    found, nodes, seen = {}, [y._node], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, Node) and node.number not in seen:
            seen.add(node.number)
            nodes += node.inputs
            if node.name.startswith("batch_norm"):
                found[node.number] = node.saved[1]
    joined = [found[number] for number in sorted(found)]
    return [a for a in joined if a.shape[1] in (8, 14)]


def test_one_value_a_channel_is_refused_before_anything_changes():
    layer = nn.BatchNorm2d(2).to("sim")
    x = to_device(np.ones((1, 2, 1, 1), np.float32), "sim")
    with pytest.raises(ValueError, match="training needs more than one value a channel"):
        layer(x)
    assert not to_numpy(layer.running_mean.data).any()


def test_the_trainer_keeps_statistics_on_the_device(tmp_path):
    rng = np.random.default_rng(6)
    batches = [(rng.standard_normal(SHAPE).astype(np.float32), np.array([0, 1, 2]))] * 2
    found = []
    for device in ("cpu", "sim"):
        model = nn.Sequential(
            conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, rng=1)
        )
        model.to(device)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = gpuconv.Trainer(model, "cross_entropy", optimizer, progress=False)
        (record,) = trainer.fit(batches, batches, epochs=1)
        found.append([record["loss"], record["validation_loss"], *model.state_dict().values()])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-4, 1e-5)
