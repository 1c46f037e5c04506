"""Networks as JSON and back: every layer, every argument, shared layers, and what is refused."""

import json

import numpy as np
import pytest

import gpuconv
from gpuconv import checkpoint, models, nn
from gpuconv.nn import rebuild

TABLE = np.random.default_rng(0).integers(0, 2, (4, 3)) | np.eye(4, 3, dtype=int)


def every_layer():
    """All layers, with arguments that differ from their defaults, for 2x13x12 pictures."""
    return nn.Sequential(
        conv=nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=((1, 0), (2, 1)), rng=0),
        norm=nn.BatchNorm2d(4, eps=1e-3, momentum=None),
        plain=nn.BatchNorm2d(4, affine=False),
        relu=nn.ReLU(),
        groups=nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2, bias=False, rng=1),
        lrn=nn.LocalResponseNorm(3, alpha=0.7, k=1.2, convention="paper"),
        around=nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 1, rng=2), nn.Sigmoid()), nn.Identity()),
        max=nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        join=nn.Concat(nn.Conv2d(4, 2, 3, padding=1, rng=3), named_tanh()),
        dense=nn.DenseBlock(2, nn.Conv2d(6, 2, 1, rng=4), nn.Conv2d(8, 2, 1, rng=5)),
        average=nn.AvgPool2d((2, 3), stride=1, padding=1, count_include_pad=False),
        fewer=nn.Conv2d(10, 4, np.int64(1), rng=6),
        partial=nn.Conv2d(4, 3, 2, connections=TABLE, rng=7),
        sum=nn.SumPool2d(2, stride=1, dilation=1),
        scaled=nn.ScaledTanh(),
        drop=nn.Dropout(0.25),
        adaptive=nn.AdaptiveAvgPool2d((3, 2)),
        flat=nn.Flatten(),
        fc=nn.Linear(18, 4, bias=False, rng=8),
        softmax=nn.Softmax(),
    )


def named_tanh():
    return nn.Sequential(first=nn.Tanh())


def scores(model, x):
    with gpuconv.no_grad():
        return model.eval()(x).numpy()


def test_every_layer_comes_back_from_its_checkpoint_alone(tmp_path):
    model = every_layer()
    described = rebuild.describe(model)
    assert json.loads(json.dumps(described)) == described == model.spec
    gpuconv.save(model, tmp_path / "own.safetensors")
    again = gpuconv.load(tmp_path / "own.safetensors")
    assert repr(again) == repr(model)
    x = np.random.default_rng(1).standard_normal((2, 2, 13, 12)).astype(np.float32)
    assert (scores(again, x) == scores(model, x)).all()
    assert again.norm.momentum is None
    assert again.drop.p == 0.25
    assert (again.partial.connections == TABLE.T).all()


@pytest.mark.parametrize("name", sorted(rebuild.LAYERS))
def test_every_layer_is_there_or_needs_no_arguments(name):
    kind = rebuild.LAYERS[name]
    if all(type(layer) is not kind for layer in every_layer().modules()):
        layer = rebuild.build(rebuild.describe(kind()))
        assert (type(layer), repr(layer)) == (kind, repr(kind()))


class Block(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.Conv2d(channels, 4, 3), nn.ReLU())


def test_a_subclass_of_sequential_is_its_layers(tmp_path):
    model = nn.Sequential(block=Block(2), flat=nn.Flatten())
    gpuconv.save(model, tmp_path / "block.safetensors")
    x = np.random.default_rng(1).standard_normal((2, 2, 5, 5)).astype(np.float32)
    again = gpuconv.load(tmp_path / "block.safetensors")
    assert (scores(again, x) == scores(model, x)).all()
    model.block.scale = nn.Parameter(np.ones(4, np.float32))
    assert model.spec is None


def test_a_layer_in_two_places_stays_one(tmp_path):
    twice = nn.Linear(3, 3)
    model = nn.Sequential(twice, nn.ReLU(), nn.Sequential(inner=twice), nn.Linear(3, 2))
    gpuconv.save(model, tmp_path / "twice.safetensors")
    again = gpuconv.load(tmp_path / "twice.safetensors")
    assert again[0] is again[2].inner
    assert len(again.parameters()) == 4


class Swish(nn.Module):
    def forward(self, x):
        return x * nn.functional.sigmoid(x)


def test_a_layer_of_ones_own_is_named_with_what_to_do(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(act=Swish()))
    assert model.spec is None
    path = tmp_path / "swish.safetensors"
    gpuconv.save(model, path)
    with pytest.raises(ValueError, match=r"layer 1\.act is a Swish, .*--model FILE\.py:FUNCTION"):
        gpuconv.load(path)
    x = np.ones((1, 3), np.float32)
    fresh = nn.Sequential(nn.Linear(3, 3), nn.Sequential(act=Swish()))
    for given in (fresh, lambda: nn.Sequential(nn.Linear(3, 3), nn.Sequential(act=Swish()))):
        assert (scores(gpuconv.load(path, given), x) == scores(model, x)).all()
    with pytest.raises(ValueError, match=r"0\.weight has shape \(3, 3\), this model's is \(2, 3\)"):
        gpuconv.load(path, nn.Sequential(nn.Linear(3, 2)))


@pytest.mark.parametrize("change", ["forward", "tied", "subclass"])
def test_what_json_cannot_tell_is_not_described(change):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    if change == "forward":
        model[1].forward = lambda x: x
    elif change == "tied":
        model[1].weight = model[0].weight
    else:
        model[1] = type("Linear", (nn.Linear,), {})(3, 3)
    assert model.spec is None
    assert rebuild.foreign_layer(rebuild.describe(model))[0] == "1"


LINEAR = {"name": "Linear", "arguments": {"in_features": 3, "out_features": 2}}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"name": "Sequential", "children": {"0": {"name": "os.system"}}},
            "layer 0 is a os.system",
        ),
        ({"name": "Linear", "arguments": {"in_features": 3}}, "out_features"),
        ({"name": "Linear", "arguments": {"in_features": 3, "out_features": -1}}, "at least 1"),
        ({"name": "Sequential", "children": {"forward": LINEAR}}, "cannot be the name"),
        ({"name": "Sequential", "children": {"0": {"same_as": "1"}}}, "is said to be '1'"),
        ({"name": "Residual", "arguments": {"body": 3}}, "children alone"),
        ({"name": "Sequential", "children": {"0": 3}}, "its metadata say model is dict"),
        ({"name": "Sequential", "children": 3}, "its metadata say model is dict"),
        ({"name": 3}, "its metadata say model is dict"),
    ],
)
def test_descriptions_of_other_peoples_making_are_refused_in_one_line(spec, words, tmp_path):
    path = tmp_path / "bad.safetensors"
    checkpoint.write(path, checkpoint.Checkpoint({"0.weight": np.zeros((2, 3))}, {"model": spec}))
    with pytest.raises(ValueError, match=words) as info:
        gpuconv.load(path)
    assert "\n" not in str(info.value)


def test_sizes_without_weights_take_no_memory(tmp_path):
    sizes = {"in_features": 2**30, "out_features": 2**30}
    parts = {
        "a": {"name": "Linear", "arguments": sizes},
        "b": {"name": "BatchNorm2d", "arguments": {"num_features": 2**31 - 1}},
    }
    spec = {"name": "Sequential", "children": parts}
    path = tmp_path / "large.safetensors"
    checkpoint.write(path, checkpoint.Checkpoint({}, {"model": spec}))
    with pytest.raises(ValueError, match=r"a\.weight is missing"):
        gpuconv.load(path)


def test_a_sequential_of_the_zoo_that_was_changed_is_described_by_its_layers(tmp_path):
    model = models.lenet()
    model.relu1 = nn.Tanh()
    gpuconv.save(model, tmp_path / "lenet.safetensors")
    again = gpuconv.load(tmp_path / "lenet.safetensors")
    assert isinstance(again.relu1, nn.Tanh)
    assert again.input_shape == (1, 32, 32)
