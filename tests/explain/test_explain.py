"""Explanations against definitions by loops, brute force and central differences."""

import re
from pathlib import Path

import loops
import loops_network
import numpy as np
import pytest
from explained import BLOCKS_SHAPE, CHAIN_SHAPE, Block, blocks, chain, images, made, scores

from gpuconv import Tensor, explain, models, nn
from gpuconv.explain.grad_cam import resize_bilinear
from gpuconv.nn import functional as F

NETWORKS = [(chain, CHAIN_SHAPE), (blocks, BLOCKS_SHAPE)]
RULES = {
    "gradient": explain.gradient,
    "guided": explain.guided_backprop,
    "deconvnet": explain.deconvnet,
}
UNITS = [  # network, shape, layer, unit
    (chain, CHAIN_SHAPE, "", (2,)),
    (chain, CHAIN_SHAPE, "relu3", (2,)),
    (chain, CHAIN_SHAPE, "conv2", (1, 2, 3)),
    (chain, CHAIN_SHAPE, "pool1", (3, 1, 1)),
    (blocks, BLOCKS_SHAPE, "", (1,)),
    (blocks, BLOCKS_SHAPE, "dense", (7, 2, 3)),
    (blocks, BLOCKS_SHAPE, "block", (2, 0, 4)),
    (blocks, BLOCKS_SHAPE, "wide.two.relu", (1, 5, 0)),
]


def close(found, expected):
    """Sums of some hundred products in float64, in another order."""
    assert found.shape == expected.shape
    bound = 1e-12 * max(np.abs(expected).max(initial=0), 1e-3)
    assert (np.abs(found - expected) <= bound).all()


def by_definition(network, image, layer, unit, rule):
    seen = {}
    loops_network.run(network, image, rule, seen)
    until = next(inner for name, inner in network.named_modules() if name == layer)
    y, back = upto(network, until, image, rule)
    np.testing.assert_allclose(y, seen[id(until)])
    g = np.zeros(y.shape)
    g[unit] = 1
    return back(g)


def upto(network, layer, x, rule):
    """As `loops_network.run`, stopping after a layer that no branch surrounds."""
    if network is layer:
        return loops_network.run(layer, x, rule)
    if isinstance(network, nn.Concat):  # the branch that holds it, alone
        child = next(
            each for each in network if any(inner is layer for _, inner in each.named_modules())
        )
        return upto(child, layer, x, rule)
    backs = []
    for child in network:
        inside = layer in list(child.modules())
        x, back = (upto if inside else lambda a, _, *b: loops_network.run(a, *b))(
            child, layer, x, rule
        )
        backs.append(back)
        if inside:
            break

    def backward(g):
        for back in reversed(backs):
            g = back(g)
        return g

    return x, backward


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("build", "shape", "layer", "unit"), UNITS)
def test_going_backward_equals_its_definition(build, shape, layer, unit, rule):
    network, x = made(build), images(shape)
    found = RULES[rule](network, x, unit, layer)
    expected = np.stack([by_definition(network, image, layer, unit, rule) for image in x])
    assert np.abs(expected).max() > 0
    close(found, expected)
    network.to("cpu")
    close(RULES[rule](network, x, unit, layer), expected)


def test_the_three_rules_differ_so_that_the_tests_above_can_tell():
    for build, shape in NETWORKS:
        network, x = made(build), images(shape)
        results = [rule(network, x, 1) for rule in RULES.values()]
        assert not np.allclose(results[0], results[1])
        assert not np.allclose(results[1], results[2])


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_gradient_equals_central_differences(build, shape):
    network, x = made(build).eval(), images(shape)
    found = explain.gradient(network, x, [0, 2])
    for n, k in ((0, 0), (1, 2)):
        image = x[n : n + 1].copy()
        expected = loops.central_difference(lambda: scores(network, image)[0, k], image)  # noqa: B023
        np.testing.assert_allclose(found[n : n + 1], expected, 1e-6, 1e-8)
    np.testing.assert_array_equal(explain.saliency(network, x, [0, 2]), np.abs(found).max(axis=1))
    np.testing.assert_array_equal(explain.input_x_gradient(network, x, [0, 2]), x * found)


def test_smooth_grad_is_the_mean_over_noisy_images():
    network, x = made(chain), images(CHAIN_SHAPE)
    draws = np.random.default_rng(5)
    expected = np.zeros(x.shape)
    for _ in range(3):
        offset = draws.standard_normal(CHAIN_SHAPE)
        for n, image in enumerate(x):
            noisy = image + 0.2 * (image.max() - image.min()) * offset
            expected[n] += by_definition(network, noisy, "", (n + 1,), "gradient") / 3
    close(explain.smooth_grad(network, x, [1, 2], samples=3, noise=0.2, rng=5), expected)
    still = explain.smooth_grad(network, x, 1, samples=2, noise=0)
    close(still, explain.gradient(network, x, 1))
    one = explain.smooth_grad(network, x[1:], 1)
    close(explain.smooth_grad(network, x, 1)[1:], one)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        explain.smooth_grad(network, x, 1, samples=0)


@pytest.mark.parametrize(
    ("build", "shape", "layer"),
    [(chain, CHAIN_SHAPE, "conv2"), (chain, CHAIN_SHAPE, "pool1"), (blocks, BLOCKS_SHAPE, "block")],
)
def test_grad_cam_equals_its_definition(build, shape, layer):
    network, x = made(build).eval(), images(shape)
    names = [name for name, _ in network.named_children()]
    place = names.index(layer) + 1
    before = nn.Sequential(*list(network)[:place])
    after = nn.Sequential(*list(network)[place:])
    for n, k in ((0, 2), (1, 0)):
        maps = loops_network.run(before, x[n])[0]
        gradient = loops_network.run(after, maps)[1](np.eye(len(network[-1].bias.data))[k])
        cam = np.zeros(maps.shape[1:])
        for channel, each in zip(maps, gradient, strict=True):
            cam += each.mean() * channel
        cam = np.where(cam > 0, cam, 0)
        found = explain.grad_cam(network, x, [2, 0], layer=layer, resize=False)[n]
        close(found, cam)
    assert explain.grad_cam(network, x, layer=layer).shape == (2, *shape[1:])


def test_grad_cam_of_an_inner_unit_and_guided():
    network, x = made(blocks), images(BLOCKS_SHAPE)
    cam = explain.grad_cam(network, x, (2, 1, 1), of="wide", layer="stem")
    assert cam.shape == (2, 6, 5)
    both = explain.guided_grad_cam(network, x, 1, layer="wide")
    guided = explain.guided_backprop(network, x, 1)
    close(both, guided * explain.grad_cam(network, x, 1, layer="wide")[:, None])
    assert explain.grad_cam_layer(network, x, "wide.two.relu") == "wide.two.conv"
    assert explain.grad_cam_layer(network, x, "block") == "block.down"
    inner = explain.grad_cam(network, x, 1, of="wide.two.relu")
    close(inner, explain.grad_cam(network, x, 1, of="wide.two.relu", layer="wide.two.conv"))
    with pytest.raises(ValueError, match=r"does not depend on the output of layer wide\.one"):
        explain.grad_cam(network, x, 1, of="wide.two", layer="wide.one")
    with pytest.raises(ValueError, match="no layer before it has maps"):
        explain.grad_cam(network, x, 1, of="stem.conv")
    with pytest.raises(ValueError, match="layer wide does not depend on the output of layer dense"):
        explain.grad_cam(network, x, 1, of="wide", layer="dense")
    with pytest.raises(ValueError, match="layer fc has no maps"):
        explain.grad_cam(network, x, 1, layer="fc")


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("lenet", 32, "relu2"),
        ("lenet5", 32, "a3"),
        ("resnet18", 64, "layer4"),
        ("googlenet", 64, "inception5b"),
        ("densenet121", 64, "relu"),
    ],
)
def test_grad_cam_takes_the_last_maps(name, size, expected):
    network = models.MODELS[name]()
    x = images((network.input_shape[0], size, size), 1, np.float32)
    assert explain.grad_cam_layer(network, x) == expected


@pytest.mark.parametrize(("old", "new"), [((2, 3), (5, 7)), ((1, 4), (3, 4)), ((5, 5), (2, 3))])
def test_resizing_weighs_the_nearest_centres(old, new):
    maps = images(old, 3)
    expected = np.zeros((3, *new))
    for n, i, j in np.ndindex(3, *new):
        for h, v in np.ndindex(*old):
            share = 1.0
            for place, a, b, at in ((i, old[0], new[0], h), (j, old[1], new[1], v)):
                centre = min(max((place + 0.5) * a / b - 0.5, 0), a - 1)
                share *= max(0.0, 1 - abs(centre - at))
            expected[n, i, j] += share * maps[n, h, v]
    close(resize_bilinear(maps, new), expected)


@pytest.mark.parametrize("window", [(2, 3), 4, (6, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_occlusion_equals_brute_force(window, stride):
    network, x = made(blocks).eval(), images(BLOCKS_SHAPE)
    value = [0.5, -1.0]
    rows, columns = (window, window) if isinstance(window, int) else window
    expected = np.zeros((2, 6, 5))
    for n, k in ((0, 2), (1, 1)):
        fall, times = np.zeros((6, 5)), np.zeros((6, 5))
        tops, lefts = [0], [0]
        while tops[-1] + rows < 6:
            tops.append(tops[-1] + stride)
        while lefts[-1] + columns < 5:
            lefts.append(lefts[-1] + stride)
        for top in tops:
            for left in lefts:
                covered = x[n : n + 1].copy()
                inside = np.zeros((6, 5), bool)
                for i in range(top, min(top + rows, 6)):
                    for j in range(left, min(left + columns, 5)):
                        covered[0, :, i, j] = value
                        inside[i, j] = True
                fall[inside] += scores(network, x[n : n + 1])[0, k] - scores(network, covered)[0, k]
                times[inside] += 1
        expected[n] = fall / times
    given = {"window": window, "stride": stride, "value": value, "batch": 7}
    close(explain.occlusion(network, x, [2, 1], **given), expected)


def test_occlusion_refuses_what_does_not_fit():
    network, x = made(blocks), images(BLOCKS_SHAPE)
    with pytest.raises(ValueError, match="does not fit an image of"):
        explain.occlusion(network, x, 1, window=6)
    with pytest.raises(ValueError, match="leaves pixels out"):
        explain.occlusion(network, x, 1, window=2, stride=3)
    with pytest.raises(ValueError, match="value has 3 numbers, expected 1 or 2"):
        explain.occlusion(network, x, 1, value=[1, 2, 3])


METHODS = {
    **RULES,
    "saliency": explain.saliency,
    "input_x_gradient": explain.input_x_gradient,
    "smooth_grad": lambda *given: explain.smooth_grad(*given, samples=3),
    "grad_cam": lambda *given: explain.grad_cam(*given, layer="block"),
    "guided_grad_cam": lambda *given: explain.guided_grad_cam(*given, layer="block"),
    "occlusion": lambda *given: explain.occlusion(*given, window=3),
}


def state_of(network):
    """Everything that an explanation must leave as it is."""
    modules = [
        (module.training, module.fusing, list(module._hooks)) for module in network.modules()
    ]
    parameters = [
        (p.requires_grad, p.data.tobytes(), None if p.grad is None else p.grad.tobytes())
        for p in network.parameters()
    ]
    return modules, parameters, [np.asarray(b.data).tobytes() for b in network.buffers()]


def doubled(module, inputs, y):
    return 2 * y


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_training_step_is_disturbed(method):
    """Explained between forward and backward, with gradients waiting, a step ends as it would."""

    def step(between):
        network = made(blocks, "cpu", np.float32)
        network["wide"].eval()  # modes, flags and hooks of one's own
        network["stem"].requires_grad_(False)
        network["dense"].register_forward_hook(doubled)
        x, dy = images(BLOCKS_SHAPE, 3, np.float32), images((3,), 3, np.float32, 2)
        network(x).backward(dy)
        y = network(x)
        before = state_of(network)
        between(network)
        assert state_of(network) == before
        y.backward(dy)
        return state_of(network)

    def between(network):
        METHODS[method](network, images(BLOCKS_SHAPE, 2, np.float32, 9), 1)

    assert step(between) == step(lambda network: None)


def test_nothing_is_disturbed_where_something_raises():
    network, x = made(blocks), images(BLOCKS_SHAPE)
    before = state_of(network)
    with pytest.raises(ValueError, match=r"must divide|channels"):
        explain.gradient(network, images((3, 6, 5)), 1)
    with pytest.raises(ValueError, match="has no unit"):
        explain.gradient(network, x, 99)
    handle = network["wide"].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain.guided_backprop(network, x, 1)
    handle.remove()
    network["wide"].register_full_backward_hook(lambda *_: 1 / 0).remove()
    assert state_of(network) == before
    y = network(x)  # in training mode still
    y.backward(np.ones(y.shape))
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_each_image_of_a_batch_by_itself_and_the_same_bytes_twice(method):
    network, x = made(blocks), images(BLOCKS_SHAPE, 3)
    kept = x.copy()
    together = METHODS[method](network, x, [0, 1, 2])
    assert together.tobytes() == METHODS[method](network, x, [0, 1, 2]).tobytes()
    np.testing.assert_array_equal(x, kept)
    for n in range(3):
        close(together[n : n + 1], METHODS[method](network, x[n : n + 1], n))
    flipped = x[:, :, ::-1].copy()[:, :, ::-1]
    close(METHODS[method](network, flipped, [0, 1, 2]), together)
    likeliest = METHODS[method](network, x, None)
    close(likeliest, METHODS[method](network, x, list(scores(network, x).argmax(1))))
    empty = METHODS[method](network, x[:0], 1)
    assert empty.shape == (0, *together.shape[1:])


def test_dropout_is_off_and_its_masks_stay():
    network, x = made(chain), images(CHAIN_SHAPE)
    explain.gradient(network, x, 1)
    assert network["drop"].masks == 0
    found = explain.activations(network, x, ["drop", "flat"])
    np.testing.assert_array_equal(found["drop"], found["flat"])


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_every_layer_has_the_output_that_loops_give(build, shape):
    network, x = made(build), images(shape, 1)
    seen = {}
    loops_network.run(network, x[0], seen=seen)
    found = explain.activations(network, x)
    layers = {name: layer for name, layer in network.named_modules() if name}
    assert set(found) == set(layers)
    for name, layer in layers.items():
        close(found[name][0], seen[id(layer)])
    assert set(explain.activations(network, x, ["flat"])) == {"flat"}


@pytest.mark.parametrize(
    "name",
    [
        "lenet",
        "resnet18",
        "googlenet",
        "densenet121",
        pytest.param("vgg16_bn", marks=pytest.mark.slow),
    ],
)
def test_fused_and_observed_passes_give_the_same_scores(name):
    arguments = {"stem": "small"} if name in ("resnet18", "densenet121") else {}
    network = models.MODELS[name](num_classes=5, **arguments).eval()
    x = images((network.input_shape[0], 32, 32), 2, np.float32)
    expected = scores(network, x)
    found = explain.activations(network, x)
    traced = nn.trace(network, x)
    for layer, step in traced.outputs.items():
        if layer:
            np.testing.assert_array_equal(found[layer], traced.tensors[step].numpy())
    np.testing.assert_array_equal(traced.tensors[-1].numpy(), expected)
    assert set(found) == set(traced.outputs) - {""}


def test_heads_are_left_out():
    network = models.googlenet(num_classes=5, aux=True, input_size=32)
    x = images((3, 32, 32), 1, np.float32)
    assert not any(name.startswith("aux") for name in explain.activations(network, x))
    message = "in evaluation, the network does not run layer aux1"
    with pytest.raises(ValueError, match=message):
        explain.activations(network, x, ["aux1"])
    with pytest.raises(ValueError, match=message):
        explain.receptive_field(network, "aux1", (3, 32, 32))


class Free(nn.Module):
    """A forward of one's own: functions, a layer that is used twice, arithmetic."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.block = Free.Gate()
        self.fc = nn.Linear(2 * 3 * 2, 3)

    class Gate(nn.Module):
        """x * sigmoid(mean of x), as squeeze-and-excitation has it."""

        def forward(self, x):
            pooled = F.adaptive_avg_pool2d(x, 1)
            return x + F.sigmoid(pooled * 1.5) * x

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = F.relu(self.conv(x) + x)
        x = F.max_pool2d(self.block(x), 2)
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("rule", RULES)
def test_a_forward_of_ones_own(rule):
    """The gradient by central differences; the rules where ReLUs are layers and where functions."""
    network, x = made(Free), images(BLOCKS_SHAPE, 2)
    found = RULES[rule](network, x, [0, 2])
    if rule == "gradient":
        for n, k in ((0, 0), (1, 2)):
            image = x[n : n + 1].copy()
            value = lambda: scores(network, image)[0, k]  # noqa: B023, E731
            np.testing.assert_allclose(
                found[n : n + 1], loops.central_difference(value, image), 1e-6, 1e-8
            )
    network.first, network.second = nn.ReLU(), nn.ReLU()

    def forward(x):
        x = network.first(network.conv(x))
        x = network.second(network.conv(x) + x)
        x = F.max_pool2d(network.block(x), 2)
        return network.fc(x.flatten(1))

    network.forward = forward
    np.testing.assert_array_equal(RULES[rule](network, x, [0, 2]), found)
    # by torch's kind of hook, on layers
    hooks = {
        "gradient": lambda module, dx, dy: None,
        "guided": lambda module, dx, dy: np.maximum(dx[0], 0),
        "deconvnet": lambda module, dx, dy: np.maximum(dy[0], 0),
    }
    for relu in (network.first, network.second):
        relu.register_full_backward_hook(hooks[rule])
    leaf = Tensor(x, requires_grad=True, device="reference")
    y = network.eval()(leaf)
    y.backward(np.eye(3)[[0, 2]])
    np.testing.assert_array_equal(leaf.grad, found)


def test_a_forward_of_ones_own_has_fields_maps_and_a_default_layer():
    network, x = made(Free), images(BLOCKS_SHAPE, 1)
    assert explain.grad_cam_layer(network, x) == "block"
    assert explain.grad_cam(network, x, 1).shape == (1, 6, 5)
    assert explain.receptive_field(network, "conv", BLOCKS_SHAPE).box(2, 2) == (0, 5, 0, 5)
    assert explain.receptive_field(network, "block", BLOCKS_SHAPE).box(0, 0) == (0, 6, 0, 5)
    assert explain.occlusion(network, x, 1, window=3).shape == (1, 6, 5)
    once = explain.activations(network, x, ["conv"])["conv"]
    np.testing.assert_array_equal(once, explain.activations(network, x)["conv"])


def test_layers_within_a_checkpoint_are_seen_too():
    network, x = made(blocks), images(BLOCKS_SHAPE)
    expected = explain.grad_cam(network, x, 1, layer="block.bn1"), explain.deconvnet(network, x, 1)
    network["block"].recompute = True
    assert isinstance(network["block"], Block)
    found = explain.grad_cam(network, x, 1, layer="block.bn1"), explain.deconvnet(network, x, 1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_forward_that_shapes_do_not_tell():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            y = self.conv(x)
            if float(y.numpy().max()) > -1e9:
                y = F.relu(y)
            return self.fc(y.flatten(1))

    network, x = Odd(), images((1, 4, 4), 1, np.float32)
    assert explain.gradient(network, x, 0).shape == (1, 1, 4, 4)
    assert explain.grad_cam(network, x, 0, layer="conv").shape == (1, 4, 4)
    assert explain.receptive_field(network, "conv", (1, 4, 4)).size == (3, 3)
    with pytest.raises(ValueError, match="the forward pass of the network needs more than shapes"):
        explain.grad_cam(network, x, 0)


@pytest.mark.parametrize(
    ("target", "of", "told"),
    [
        (4, "", "the network has no unit 4: its output is 4, counted from 0"),
        (-1, "", "has no unit -1"),
        ((1, 2), "", "a target of the network is an int, got (1, 2)"),
        (1.5, "", "is an int, got 1.5"),
        ([1], "", "1 targets for 2 images"),
        ((1, 9, 0), "conv1", "layer conv1 has no unit (1, 9, 0): its output is 4x4x8"),
        ((1, 2), "conv1", "an int (a channel) or (channel, row, column), got (1, 2)"),
        (None, "conv1", "name a target: the output of layer conv1 is maps"),
        (1, "conv3", "unknown layer 'conv3'; did you mean 'conv"),
    ],
)
def test_wrong_targets_are_refused(target, of, told):
    with pytest.raises(ValueError, match=r"^(explain|unknown)") as refused:
        explain.gradient(made(chain), images(CHAIN_SHAPE), target, of)
    assert told in str(refused.value)


def test_wrong_images_are_refused():
    network = made(chain)
    with pytest.raises(ValueError, match=r"a batch of images \(N, C, H, W\), got \(2, 9, 8\)"):
        explain.occlusion(network, images(CHAIN_SHAPE)[0], 1)
    with pytest.raises(ValueError, match="must divide the 3 channels of x"):
        explain.gradient(network, images((3, 9, 8)), 1)


def test_a_channel_is_the_sum_of_its_units_and_arrays_are_targets_too():
    network, x = made(chain), images(CHAIN_SHAPE)
    P, Q = explain.activations(network, x)["conv2"].shape[2:]
    each = [explain.gradient(network, x, (1, p, q), "conv2") for p in range(P) for q in range(Q)]
    close(explain.gradient(network, x, 1, "conv2"), sum(each))
    some = explain.gradient(network, x, np.array([[1, 0, 2], [2, 2, 4]]), "conv2")
    close(some[1:], explain.gradient(network, x[1:], (2, 2, 4), "conv2"))


@pytest.mark.parametrize(("layer", "of"), [("dense", "wide.one"), ("wide.one", "wide.two")])
def test_a_layer_that_the_unit_does_not_depend_on(layer, of):
    network, x = made(blocks), images(BLOCKS_SHAPE)
    message = f"layer {of} does not depend on the output of layer {layer}"
    with pytest.raises(ValueError, match=message):
        explain.layer_gradient(network, x, layer, (1, 2, 3), of)


def test_the_gradient_at_a_layer():
    network, x = made(blocks).eval(), images(BLOCKS_SHAPE)
    maps = explain.activations(network, x, ["block"])["block"]
    after = nn.Sequential(*list(network)[2:]).to("reference")
    close(explain.layer_gradient(network, x, "block", 1), explain.gradient(after, maps, 1))
    ones = np.zeros((2, 4, 6, 5))
    ones[:, 1] = 1
    np.testing.assert_array_equal(explain.layer_gradient(network, x, "block", 1, "block"), ones)


def test_explained_on_the_simulated_kernels():
    pytest.importorskip("simulated")  # skips where the simulator cannot run
    network = models.lenet(seed=1)
    x = np.random.default_rng(0).random((1, 1, 32, 32), np.float32)
    expected = [rule(network, x, 3) for rule in RULES.values()]
    expected.append(explain.grad_cam(network, x, 3))
    network.to("sim")
    found = [rule(network, x, 3) for rule in RULES.values()]
    found.append(explain.grad_cam(network, x, 3))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, 1e-3, 1e-6)


def test_the_example_of_its_readme_runs():
    text = (Path(explain.__file__).parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {}
    exec(compile(example, "explain/README.md", "exec"), found)
    assert found["cam"].shape == (4, 32, 32)
    assert found["box"] == (6, 20, 8, 22)
