"""What may be set on a module, what replaces a model's head, modes and hooks."""

import numpy as np
import pytest

import gpuconv
from gpuconv import models, nn
from gpuconv.explain import gradient
from gpuconv.nn import functional as F
from gpuconv.nn.summary import summary

X = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


# ---- attributes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", np.ones((2, 3), np.float32)),
        ("weight", [[1.0, 2.0, 3.0]] * 2),
        ("weight", nn.Tensor(np.ones((2, 3), np.float32))),
        ("bias", np.ones(2, np.float32)),
        ("bias", 0.0),
    ],
)
def test_a_parameter_is_not_replaced_by_an_array(name, value):
    for bias in (True, False) if name == "bias" else (True,):
        layer = nn.Linear(3, 2, bias)
        before = layer.named_parameters()
        with pytest.raises(TypeError, match=f"Linear: {name} must be a Parameter or None, got "):
            setattr(layer, name, value)
        assert layer.named_parameters() == before


def test_arithmetic_on_a_parameter_is_not_lost():
    layer = nn.Linear(3, 2)
    with pytest.raises(TypeError, match="got Tensor; its `data` can be set"):
        layer.weight *= 0.5
    expected = layer.weight.data * np.float32(0.5)
    layer.weight.data *= np.float32(0.5)
    np.testing.assert_array_equal(layer.weight.data, expected)


def test_what_may_be_set():
    layer = nn.Conv2d(1, 2, 3)
    layer.weight = nn.Parameter(np.zeros((2, 1, 3, 3), np.float32))
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    np.testing.assert_array_equal(layer(X[:, :1]).data, np.zeros((2, 2, 30, 30)))
    layer.bias = nn.Parameter(np.ones(2, np.float32))
    np.testing.assert_array_equal(layer(X[:, :1]).data, np.ones((2, 2, 30, 30)))
    layer.note = np.zeros(3)  # an attribute of one's own


def test_buffers_and_modules_are_not_replaced_by_something_else():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(TypeError, match="running_mean must be a Buffer or None, got ndarray"):
        norm.running_mean = np.zeros(3)
    with pytest.raises(TypeError, match="weight must be a Parameter or None, got ndarray"):
        nn.BatchNorm2d(3, affine=False).weight = np.ones(3)
    model = nn.Sequential(conv=nn.Conv2d(3, 2, 3), relu=nn.ReLU())
    for change in (
        lambda: setattr(model, "relu", F.relu),
        lambda: model.__setitem__(1, F.relu),
        lambda: model.append(F.relu),
        lambda: nn.Sequential(F.relu),
        lambda: nn.ModuleList([F.relu]),
        lambda: model.add_module("act", F.relu),
    ):
        with pytest.raises(TypeError, match="must be a Module"):
            change()
    with pytest.raises(TypeError, match="relu cannot be None; `del` takes a module out"):
        model.relu = None
    assert [type(module) for module in model] == [nn.Conv2d, nn.ReLU]


@pytest.mark.parametrize("name", ["train", "parameters", "device", "forward"])
def test_a_part_does_not_hide_what_modules_need(name):
    model = nn.Sequential()
    for part in (nn.ReLU(), nn.Parameter(np.ones(2, np.float32))):
        with pytest.raises(ValueError, match=f"Sequential: '{name}' cannot be the name of a part"):
            setattr(model, name, part)


def test_a_shortcut_may_be_taken_away():
    block = nn.Residual(nn.Identity(), nn.Conv2d(3, 3, 1))
    block.shortcut = None
    np.testing.assert_array_equal(block(X).data, X + X)


def test_modules_in_a_plain_list_are_warned_of():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layers = nn.Linear(3, 3), []
            self.again = [self.first]  # found already, by its own name

        def forward(self, x):
            return self.first(x)

    model = Net()
    model.eval()
    model.layers.append(nn.Linear(3, 3))
    with pytest.warns(UserWarning, match=r"Net: the modules of the list layers are not found"):
        assert len(model.parameters()) == 2


# ---- another head ------------------------------------------------------------------------------

HEADS = {
    "resnet18": ("fc", 512), "densenet121": ("classifier", 1024), "googlenet": ("fc", 1024),
    "lenet": ("fc3", 100), "harley_lenet": ("fc3", 100), "lenet5": ("out", 84),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_another_head_is_used_trained_saved_and_explained(name, tmp_path):
    head, features = HEADS[name]
    small = {"stem": "small"} if name in ("resnet18", "densenet121") else {}
    model = models.MODELS[name](**small)
    x = X[:, : model.input_shape[0]]
    setattr(model, head, nn.Linear(features, 5, rng=0))
    loss = nn.CrossEntropyLoss()(model(x), [4, 0])
    loss.backward()
    assert model.get_submodule(head).weight.grad.any()
    assert summary(model, x.shape[1:]).rows[-1].output_shape == (5,)
    assert gradient(model, x, 4).shape == x.shape
    gpuconv.save(model, tmp_path / "model.safetensors")
    again = gpuconv.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again(x).data, model.eval()(x).data)


def test_a_head_within_a_container_is_replaced_by_its_place():
    model = models.alexnet(seed=None)
    model.classifier[-1] = nn.Linear(4096, 7)
    assert model.spec["arguments"]["num_classes"] == 7
    model.classifier[6] = nn.Linear(4096, 3)
    assert nn.output_shape(model, (3, 224, 224)) == (3,)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "maxpool", nn.Identity()),
        lambda model: setattr(model, "relu", nn.Tanh()),
        lambda model: setattr(model, "fc", nn.Sequential(nn.Dropout(), nn.Linear(512, 5))),
        lambda model: setattr(model.layer1, "0", nn.Identity()),
    ],
)
def test_a_model_changed_otherwise_is_not_taken_for_the_one_it_was(change, tmp_path):
    """The state may have the same names and shapes: rebuilt from its name it gave other scores."""
    model = models.resnet18(num_classes=5)
    change(model)
    assert model.spec is None
    gpuconv.save(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="its network is a ResNet; name the code"):
        gpuconv.load(tmp_path / "model.safetensors")


def test_what_matters_in_training_alone_changes_no_spec():
    model = models.googlenet(num_classes=5)
    before = model.spec
    model.dropout.p = 0.0
    model.conv1.bn.momentum = 0.01
    assert model.spec == before


# ---- modes and hooks ---------------------------------------------------------------------------


def test_evaluation_leaves_statistics_and_masks_as_they_are():
    dropout = nn.Dropout(0.5, seed=3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), dropout).eval()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    first = model(X).data
    np.testing.assert_array_equal(model(X).data, first)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert dropout.rng_state == [3, 0]


@pytest.mark.parametrize("mode", ["false", 0, None])
def test_a_mode_is_a_bool(mode):
    model = nn.Sequential(nn.Dropout())
    with pytest.raises(TypeError, match="train: mode must be True or False, got "):
        model.train(mode)
    assert model.eval()[0].training is False


def test_after_its_last_hook_a_module_is_as_before():
    layer = nn.Linear(3, 2, rng=0)
    seen = []

    def note(*_):
        seen.append(1)

    one, other = layer.register_forward_hook(note), layer.register_forward_hook(note)
    x = X[0, 0, :, :3]
    layer(x)
    one.remove()
    one.remove()  # the same hook, registered again, stays
    layer(x)
    other.remove()
    model = nn.Sequential(layer, nn.ReLU())
    model(x)
    assert len(seen) == 3
    assert not layer._hooks
    assert model.plan((3,)).startswith("linear_relu")
