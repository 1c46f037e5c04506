"""Layers and containers: state, gradients through whole networks, devices, and what errors say."""

import loops
import numpy as np
import pytest
from passes import training_pass

from gpuconv import models, nn
from gpuconv.nn import init
from gpuconv.nn.summary import summary


def small_network():
    """Every container and most layers, small enough for central differences."""
    return nn.Sequential(
        stem=nn.Conv2d(2, 4, 3, padding=1),
        act=nn.ReLU(),
        mixed=nn.Concat(
            nn.Conv2d(4, 2, 1),
            nn.Sequential(nn.Conv2d(4, 3, 3, padding="same", groups=1), nn.Tanh()),
            nn.MaxPool2d(3, 1, 1),
        ),
        block=nn.Residual(nn.Sequential(nn.Conv2d(9, 9, 3, padding=1, groups=3), nn.Sigmoid())),
        down=nn.Residual(nn.Conv2d(9, 6, 3, 2, 1), nn.Conv2d(9, 6, 1, 2, bias=False)),
        pool=nn.AvgPool2d(2, ceil_mode=True),
        scaled=nn.ScaledTanh(),
        flat=nn.Flatten(),
        fc=nn.Linear(6 * 2 * 2, 3),
    )


def make(network, dtype=np.float64, device="reference"):
    init.initialize(network, 4)
    return network.to(device, dtype)


def test_every_gradient_of_a_network_equals_central_differences():
    network = make(small_network())
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((2, 2, 6, 7)), np.array([0, 2])
    loss = nn.CrossEntropyLoss()

    def objective():
        return float(loss(network(x), labels))

    _, _, dx = training_pass(network, loss, x, labels)
    np.testing.assert_allclose(dx, loops.central_difference(objective, x), 1e-4, 1e-7)
    for name, parameter in network.named_parameters():
        part = parameter.data[::3]  # every third filter: one of each group, where there are groups
        difference = loops.central_difference(objective, part)
        np.testing.assert_allclose(parameter.grad[::3], difference, 1e-4, 1e-7, err_msg=name)


def test_cpu_and_reference_agree_on_a_network():
    rng = np.random.default_rng(2)
    x, labels = rng.standard_normal((5, 2, 6, 7)).astype(np.float32), np.array([0, 2, 1, 1, 0])
    results = []
    for device in ("cpu", "reference"):
        network, loss = make(small_network(), np.float32, device), nn.CrossEntropyLoss()
        value, _, dx = training_pass(network, loss, x, labels)
        results.append([value, dx, *[p.grad for p in network.parameters()]])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, 1e-4, 1e-5)


def test_gradients_add_up_until_zero_grad():
    layer, x = nn.Linear(3, 2, rng=0), np.ones((4, 3), np.float32)
    layer(x).sum().backward()
    first = layer.weight.grad.copy()
    layer(x).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad, 2 * first)
    layer.zero_grad()
    assert layer.weight.grad is None


def test_state_dict_round_trip_and_names():
    network, other = make(small_network()), small_network().to("reference", np.float64)
    state = network.state_dict()
    assert "stem.weight" in state
    assert "mixed.1.0.weight" in state
    assert "block.body.0.bias" in state
    assert "down.shortcut.weight" in state
    assert "down.shortcut.bias" not in state
    other.load_state_dict({name: value.copy() for name, value in state.items()})
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, state[name])


def test_load_state_dict_refuses_other_architectures_and_changes_nothing():
    network = models.lenet()
    before = {name: value.copy() for name, value in network.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    state["fc3.weight"] = np.zeros((7, 100), np.float32)
    del state["conv1.bias"]
    state["extra"] = np.zeros(1)
    with pytest.raises(ValueError, match="another architecture") as raised:
        network.load_state_dict(state)
    for text in (
        "fc3.weight has shape (7, 100), this model's is (10, 100)",
        "conv1.bias is missing",
    ):
        assert text in str(raised.value)
    assert "extra is not in this model" in str(raised.value)
    with pytest.raises(ValueError, match="fc3"):
        network.load_state_dict(state, strict=False)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    del state["fc3.weight"]
    network.load_state_dict(state, strict=False)
    np.testing.assert_array_equal(network.state_dict()["fc1.bias"], before["fc1.bias"] + 1)


def test_initialisation_depends_on_the_seed_alone():
    a, b, c = models.lenet(seed=1), models.lenet(seed=1), models.lenet(seed=2)
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(value, b.state_dict()[name])
        if name.endswith("weight"):
            assert (value != c.state_dict()[name]).any()


@pytest.mark.parametrize(
    ("function", "variance"),
    [
        (init.kaiming_uniform, 2 / 400),
        (init.kaiming_normal, 2 / 400),
        (init.xavier_uniform, 2 / 900),
        (init.xavier_normal, 2 / 900),
        (init.lecun_normal, 1 / 400),
    ],
)
def test_initialisers_have_their_variance(function, variance):
    weights = function((20, 16, 5, 5), np.random.default_rng(0))
    assert weights.dtype == np.float32
    assert abs(weights.mean()) < 4 * np.sqrt(variance / weights.size)
    assert weights.var() == pytest.approx(variance, rel=0.06)
    with pytest.raises(ValueError, match="no fan"):
        function((5,), np.random.default_rng(0))


def test_orthogonal_rows():
    w = init.orthogonal((8, 3, 3, 3), np.random.default_rng(0)).reshape(8, -1)
    np.testing.assert_allclose(w @ w.T, np.eye(8), atol=1e-6)


def test_initialize_with_a_chosen_function():
    network = models.lenet()
    init.initialize(network, 0, init.kaiming_normal)
    state = network.state_dict()
    assert not state["conv1.bias"].any()
    assert state["fc1.weight"].var() == pytest.approx(2 / 400, rel=0.05)


def test_lenet_is_the_articles():
    found = summary(models.lenet())
    assert found.parameters == 63_802
    assert found.multiply_adds == 117_600 + 240_000 + 48_000 + 12_000 + 1_000
    assert [row.output_shape for row in found.rows[:6]] == [
        (6, 28, 28), (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 10, 10), (16, 5, 5),
    ]  # fmt: skip
    assert "63,802" in str(found)


def test_traced_shapes_are_the_real_ones():
    network = make(small_network(), np.float32, "cpu")
    found = summary(network, (2, 6, 7))
    y = network(np.ones((3, 2, 6, 7), np.float32))
    assert y.shape == (3, *found.rows[-1].output_shape)
    assert found.parameters == sum(p.data.size for p in network.parameters())


def test_summary_stops_at_the_layer_that_does_not_fit():
    found = summary(models.lenet(), (1, 28, 28))
    names = [row.name for row in found.rows]
    assert names == ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flat"]
    assert "400" in found.error
    assert "256" in found.error
    assert str(found).endswith(found.error)
    with pytest.raises(ValueError, match="give input_shape"):
        summary(nn.Sequential(nn.ReLU()))


def test_models_are_built_by_name():
    network = models.build({"name": "lenet", "arguments": {"num_classes": 7, "in_channels": 3}})
    assert network(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 7)
    assert network.spec == {"name": "lenet", "arguments": {"num_classes": 7, "in_channels": 3}}
    with pytest.raises(ValueError, match="unknown model 'lenat'; did you mean 'lenet'"):
        models.build({"name": "lenat"})
    with pytest.raises(ValueError, match="model lenet"):
        models.build({"name": "lenet", "arguments": {"depth": 3}})


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups=2 must divide"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size must be at least 1"),
        (lambda: nn.Linear(0, 3), "at least 1"),
        (lambda: nn.MaxPool2d(2, padding=-1), "padding must be at least 0"),
        (lambda: nn.Concat(), "at least one branch"),
        (lambda: nn.ReLU().to("gpu"), "unknown device 'gpu'"),
    ],
)
def test_impossible_layers_are_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_branches_of_other_shapes_are_refused():
    x = np.ones((1, 2, 5, 5), np.float32)
    with pytest.raises(ValueError, match="branches' shapes differ"):
        nn.Residual(nn.Conv2d(2, 3, 3))(x)
    found = summary(nn.Sequential(nn.Concat(nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 1))), (2, 5, 5))
    assert "differ in more than their channels" in found.error


# ---- containers as lists -----------------------------------------------------------------------


def test_a_sequential_is_sliced_set_cut_and_grown_like_a_list():
    model = nn.Sequential(nn.Linear(4, 3, rng=0), nn.Tanh(), nn.Linear(3, 2, rng=1)).eval()
    x = np.ones((2, 4), np.float32)
    head = model[:2]
    assert isinstance(head, nn.Sequential)
    assert head[0] is model[0]
    assert not head.training
    np.testing.assert_array_equal(model[2](head(x)).data, model(x).data)
    assert list(dict(model[1:].named_children())) == ["1", "2"]
    model[-1] = nn.Linear(3, 5)
    model["1"] = nn.ReLU()
    assert model(x).shape == (2, 5)
    del model[1]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    del model[-1]
    assert model.append(nn.Tanh()).append(nn.Linear(3, 7))(x).shape == (2, 7)
    named = nn.Sequential(a=nn.ReLU(), b=nn.Tanh())
    del named[0]
    assert list(dict(named.named_children())) == ["b"]


def test_append_takes_no_modules_place():
    model = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid())
    delattr(model, "0")
    model.append(nn.Softmax())
    assert [type(module) for module in model] == [nn.Tanh, nn.Sigmoid, nn.Softmax]


@pytest.mark.filterwarnings("ignore:Net. the modules of the list")
def test_a_module_list_is_found_and_a_plain_list_is_not():
    class Net(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.layers = kind([nn.Linear(3, 3, rng=i) for i in range(2)])

        def forward(self, x):
            for layer in self.layers:
                x = nn.functional.relu(layer(x))
            return x

    hidden, found = Net(list), Net(nn.ModuleList)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(hidden(x).data, found(x).data)
    assert hidden.parameters() == []
    assert list(found.state_dict())[::2] == ["layers.0.weight", "layers.1.weight"]


def test_a_dense_block_of_another_growth_is_refused():
    x = np.zeros((1, 2, 3, 3), np.float32)
    layers = nn.Conv2d(2, 3, 1), nn.Conv2d(5, 3, 1)
    with pytest.raises(ValueError, match="gave 8 channels in all, growth=5 makes 12"):
        nn.DenseBlock(5, *layers)(x)
    with pytest.raises(ValueError, match="does not fit behind 5 of 6 channels"):
        nn.DenseBlock(2, *layers)(x)
    assert nn.DenseBlock(3, *layers)(x).shape == (1, 8, 3, 3)


def test_cat_of_features_and_what_it_refuses():
    a, b = np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32)
    assert nn.functional.cat([a, b]).shape == (2, 7)
    with pytest.raises(TypeError, match="different types: float32 and float64"):
        nn.functional.cat([a, b.astype(np.float64)])
    with pytest.raises(ValueError, match="at least one tensor"):
        nn.functional.cat([])


def test_batch_norm_on_the_reference_runs_its_definition_for_any_tensor(monkeypatch):
    layer = nn.BatchNorm2d(2).to("reference")
    x = nn.Tensor(np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32))
    ran = []
    reference = nn.functional.ops.batch_norm2d.reference
    monkeypatch.setattr(
        nn.functional.ops.batch_norm2d,
        "reference",
        lambda *given: ran.append(1) or reference(*given),
    )
    layer(x)
    assert ran


def test_loading_names_what_is_on_one_side_and_types_are_floats():
    layer = nn.Linear(2, 2)
    missing, unexpected = layer.load_state_dict(
        {"weight": np.ones((2, 2)), "other": np.ones(1)}, strict=False
    )
    assert (missing, unexpected) == (["bias"], ["other"])
    for dtype in (np.int32, np.float16):
        with pytest.raises(ValueError, match="dtype must be float32 or float64"):
            layer.to(dtype=dtype)
    assert layer.weight.dtype == np.float32
