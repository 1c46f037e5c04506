"""Explanations against definitions by loops, brute force and central differences."""

import re
from pathlib import Path

import loops
import loops_network
import numpy as np
import pytest
from explained import BLOCKS_SHAPE, CHAIN_SHAPE, blocks, chain, images, made

from gpuconv import explain, models, nn
from gpuconv.explain.grad_cam import resize_bilinear
from gpuconv.explain.graph import EXPANSIONS

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
    until = next(inner for name, inner in network.layers() if name == layer)
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
        child = next(each for each in network if any(inner is layer for _, inner in each.layers()))
        return upto(child, layer, x, rule)
    backs = []
    for child in network:
        inside = any(inner is layer for _, inner in child.layers())
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
        expected = loops.central_difference(lambda: network.infer(image)[0, k], image)  # noqa: B023
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
    names = list(network.children())
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
    assert explain.grad_cam_layer(network, x, "block") == "block.bn1"
    inner = explain.grad_cam(network, x, 1, of="wide.two.relu")
    close(inner, explain.grad_cam(network, x, 1, of="wide.two.relu", layer="wide.two.conv"))
    with pytest.raises(ValueError, match=r"'wide.one' is not in this pass: .* does not depend"):
        explain.grad_cam(network, x, 1, of="wide.two", layer="wide.one")
    with pytest.raises(ValueError, match="no layer before it has maps"):
        explain.grad_cam(network, x, 1, of="stem.conv")
    with pytest.raises(ValueError, match="layer dense comes after layer wide"):
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
        ("densenet121", 64, "features"),
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
                fall[inside] += network.infer(x[n : n + 1])[0, k] - network.infer(covered)[0, k]
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


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_training_step_is_disturbed(method):
    """Explained between forward and backward, with gradients waiting, a step ends as it would."""

    def step(between):
        network = made(blocks, "cpu", np.float32)
        x, dy = images(BLOCKS_SHAPE, 3, np.float32), images((3,), 3, np.float32, 2)
        network.forward(x)
        network.backward(dy)
        network.forward(x)
        between(network)
        assert network.training
        assert all(layer.training for _, layer in network.layers())
        dx = network.backward(dy)
        gradients = [parameter.grad.tobytes() for parameter in network.parameters()]
        return [dx.tobytes(), *gradients, *(a.tobytes() for a in network.state_dict().values())]

    def between(network):
        METHODS[method](network, images(BLOCKS_SHAPE, 2, np.float32, 9), 1)

    assert step(between) == step(lambda network: None)


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
    close(likeliest, METHODS[method](network, x, list(network.eval().infer(x).argmax(1))))
    empty = METHODS[method](network, x[:0], 1)
    assert empty.shape == (0, *together.shape[1:])


def test_dropout_is_off_and_its_masks_stay():
    network, x = made(chain), images(CHAIN_SHAPE)
    explain.gradient(network, x, 1)
    assert network["drop"].masks == 0
    network["drop"].training = True
    run = explain.Pass(network, x)
    np.testing.assert_array_equal(run.output("drop"), run.output("flat"))


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_every_layer_of_a_pass_has_the_output_that_loops_give(build, shape):
    network, x = made(build), images(shape, 1)
    seen = {}
    loops_network.run(network, x[0], seen=seen)
    found = explain.activations(network, x)
    layers = {name: layer for name, layer in network.layers() if name}
    assert set(found) == set(layers)
    for name, layer in layers.items():
        # A residual without a name of its own shares its block's, and so does its body.
        if layer not in (network["relu"] if "relu" in found else None,) and name != "block":
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
def test_joined_passes_and_layer_by_layer_give_the_same_scores(name):
    arguments = {"stem": "small"} if name in ("resnet18", "densenet121") else {}
    network = models.MODELS[name](num_classes=5, **arguments).eval()
    x = images((network.input_shape[0], 32, 32), 2, np.float32)
    np.testing.assert_array_equal(explain.Pass(network, x).output(), network.infer(x))
    whole = explain.Pass(network, x, keep=False)
    np.testing.assert_array_equal(whole.output(), network.infer(x))
    with pytest.raises(ValueError, match="is not in this pass"):
        whole.output(next(iter(network.children())))
    with pytest.raises(RuntimeError, match="with keep=True"):
        whole.backward(np.ones_like(whole.output()), to="")


def test_heads_are_left_out():
    network = models.googlenet(num_classes=5, aux=True, input_size=32)
    x = images((3, 32, 32), 1, np.float32)
    run = explain.Pass(network, x)
    np.testing.assert_array_equal(run.output(), network.eval().infer(x))
    assert not any(name.startswith("aux") for name in run.graph.names)


def test_a_container_of_ones_own_is_refused_until_it_is_known(monkeypatch):
    class Twice(nn.Layer):
        def __init__(self):
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, x):
            return self.inner.forward(self.inner.forward(x))

    class Odd(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    x = images((1, 4, 4), 1, np.float32)
    for layer in (Twice(), Odd(nn.ReLU())):
        with pytest.raises(NotImplementedError, match="a container that explain does not know"):
            explain.gradient(nn.Sequential(a=layer), x, 0)

    def twice(graph, layer, name, source):
        return graph.expand(layer.inner, f"{name}.inner", graph.expand(layer.inner, name, source))

    monkeypatch.setitem(EXPANSIONS, Twice, twice)
    network = nn.Sequential(a=Twice(), flat=nn.Flatten())
    np.testing.assert_array_equal(explain.gradient(network, x, 0).ravel()[1:], np.zeros(15))
    assert explain.gradient(network, np.abs(x), 0).ravel()[0] == 1


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
    run = explain.Pass(network, images(CHAIN_SHAPE))
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 4\)"):
        run.backward(np.ones((2, 3)))


def test_a_channel_is_the_sum_of_its_units_and_arrays_are_targets_too():
    network, x = made(chain), images(CHAIN_SHAPE)
    P, Q = explain.activations(network, x)["conv2"].shape[2:]
    each = [explain.gradient(network, x, (1, p, q), "conv2") for p in range(P) for q in range(Q)]
    close(explain.gradient(network, x, 1, "conv2"), sum(each))
    some = explain.gradient(network, x, np.array([[1, 0, 2], [2, 2, 4]]), "conv2")
    close(some[1:], explain.gradient(network, x[1:], (2, 2, 4), "conv2"))


def test_what_a_layer_does_not_depend_on_is_zero():
    network, x = made(blocks), images(BLOCKS_SHAPE)
    run = explain.Pass(network, x)
    dy = np.ones_like(run.output("wide.one"))
    assert not run.backward(dy, at="wide.one", to="wide.two.pool").any()
    assert not run.backward(dy, at="wide.one", to="dense").any()
    np.testing.assert_array_equal(run.backward(dy, at="wide.one", to="wide.one"), dy)
    for _ in range(2):  # as often as one likes
        again = run.backward(dy, at="wide.one")
    close(again, explain.Pass(network, x, "wide.one").backward(dy))


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
