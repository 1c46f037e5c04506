"""`Module.compile`: against the network itself in float64, and what a snapshot is."""

import copy

import numpy as np
import pytest

from gpuconv import models, nn, no_grad
from gpuconv.nn import functional as F


def fitted(model, x):
    """The model in evaluation mode, with running statistics of its own activations."""
    model.train()
    for _ in range(3):
        model(x)
    return model.eval()


def copied(model, dtype):
    return copy.deepcopy(model).to(dtype=dtype)


def errors(model, x, fast):
    """Relative errors, in norm, of the compiled and of the uncompiled network."""
    with no_grad():
        plain, found = model(x).data, fast(x).data
        exact = copied(model, np.float64)(x.astype(np.float64)).data
    assert found.shape == plain.shape
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    return [np.linalg.norm(y - exact) / np.linalg.norm(exact) for y in (found, plain)]


# Folding adds a rounding to each weight, and a sum has one chain of roundings: measured, the error
# was 0.4 to 3 times that of the network itself.
TIMES, LEAST = 8, 1e-6

SMALL = ["lenet", "lenet5", "harley_lenet"]
MEDIUM = ["resnet18", "googlenet"]
LARGE = ["alexnet", "alexnet_2012", "zfnet", "googlenet_paper", "vgg16", "vgg16_bn", "vgg19",
         "resnet34", "resnet50", "densenet121"]  # fmt: skip


@pytest.mark.parametrize("name", [*SMALL, *MEDIUM])
def test_architecture(name):
    model = models.MODELS[name]()
    size = model.input_shape if name in SMALL else (3, 64, 64)
    x = np.random.default_rng(0).standard_normal((2, *size)).astype(np.float32)
    fast, plain = errors(fitted(model, x), x, model.eval().compile())
    assert fast <= max(TIMES * plain, LEAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_architecture(name):
    model = models.MODELS[name]()
    x = np.random.default_rng(0).standard_normal((2, *model.input_shape)).astype(np.float32)
    fast, plain = errors(fitted(model, x), x, model.eval().compile())
    assert fast <= max(TIMES * plain, LEAST)


def test_every_architecture_is_tested():
    assert sorted(models.MODELS) == sorted([*SMALL, *MEDIUM, *LARGE])


class Odd(nn.Module):
    """Values read twice, sums of sums, norms by themselves, groups, joined branches of branches."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, rng=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False, rng=2)
        self.norm2 = nn.BatchNorm2d(8, affine=False)
        self.conv3 = nn.Conv2d(16, 5, 1, stride=2, rng=3)
        self.conv4 = nn.Conv2d(5, 5, (3, 2), padding=1, dilation=(1, 2), rng=4)
        self.norm3 = nn.BatchNorm2d(31)
        self.fc = nn.Linear(31 * 9, 4, rng=5)

    def forward(self, x):
        a = self.norm1(self.conv1(x))
        b = F.relu(a)
        c = F.relu(self.norm2(self.conv2(b)) + a)  # a is read three times
        d = F.cat([b + c, c])  # c lies in d, and is read there
        e = F.tanh(self.conv3(d))
        f = F.relu(self.conv4(e) + self.conv4(e))
        g = F.cat([d, F.local_response_norm(d, 3)])  # d is a part of two: copied to one
        g = F.cat([F.adaptive_avg_pool2d(part, 3) for part in (f, e, e, d)])
        return F.softmax(self.fc(F.relu(self.norm3(g)).flatten(1)))


def test_unusual_networks():
    x = np.random.default_rng(0).standard_normal((3, 3, 11, 13)).astype(np.float32)
    model = Odd()
    fast, plain = errors(fitted(model, x), x, model.compile())
    assert fast <= max(TIMES * plain, LEAST)


class Pools(nn.Module):
    def forward(self, x):
        joined = F.cat([x, F.relu(x)])  # the input is a part
        pools = [
            F.max_pool2d(joined, 3, 2, 1, ceil_mode=True),
            F.avg_pool2d(joined, 3, 2, 1, ceil_mode=True),
            F.avg_pool2d(joined, 3, 2, 1, count_include_pad=False, ceil_mode=True),
            F.sum_pool2d(joined, 3, 2, 1, ceil_mode=True),
            F.max_pool2d(joined, 2, 2, 1, dilation=2, ceil_mode=True),
        ]
        return F.cat(
            [F.cat(pools[:2]), *[F.adaptive_avg_pool2d(p, pools[0].shape[2:]) for p in pools[2:]]]
        )


def test_images_as_output_and_pools():
    x = np.random.default_rng(0).standard_normal((2, 5, 10, 8)).astype(np.float32)
    model = Pools().eval()
    fast, plain = errors(model, x, model.compile())
    assert fast <= max(TIMES * plain, LEAST)


def block(channels, filters, size=3, groups=1, rng=0):
    """A convolution whose ReLU and pool are computed in its pass."""
    conv = nn.Conv2d(channels, filters, size, padding=1, groups=groups, rng=rng)
    return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))


POOLED = {
    "its images are the output": nn.Sequential(block(3, 6)),
    "one after another, then flat": nn.Sequential(
        block(3, 6), block(6, 10, 5, rng=1), nn.Flatten(), nn.Linear(10 * 3, 7, rng=2)
    ),
    "read by another convolution": nn.Sequential(
        block(3, 6), nn.Conv2d(6, 4, 3, stride=2, rng=1), nn.ReLU()
    ),
    "after another convolution": nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, rng=1), block(8, 6), nn.Flatten()
    ),
    "in groups": nn.Sequential(block(3, 9, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "of a batch norm": nn.Sequential(nn.BatchNorm2d(3), block(3, 6, 1), nn.Flatten()),
}


@pytest.mark.parametrize("count", [1, 2, 19])
@pytest.mark.parametrize("name", POOLED)
def test_convolution_with_its_pool(name, count):
    x = np.random.default_rng(0).standard_normal((count, 3, 16, 11)).astype(np.float32)
    model = copy.deepcopy(POOLED[name])
    fast, plain = errors(fitted(model, np.concatenate([x, -x])).eval(), x, model.compile())
    assert fast <= max(TIMES * plain, LEAST)


def test_the_input_is_read_as_images_and_by_the_pool_too():
    conv = nn.Conv2d(3, 3, 3, padding=1, rng=0)
    model = Function(lambda x: F.cat([F.max_pool2d(F.relu(conv(x)), 2), F.max_pool2d(x, 2)])).eval()
    model.conv = conv
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 10)).astype(np.float32)
    with no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(model.compile()(x).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_dense_block_keeps_all_channels_in_one_array():
    block = nn.DenseBlock(4, *(nn.Conv2d(3 + 4 * i, 4, 3, padding=1, rng=i) for i in range(3)))
    model = nn.Sequential(block, nn.BatchNorm2d(15), nn.ReLU(), nn.Conv2d(15, 2, 1, rng=9))
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 7)).astype(np.float32)
    fast, plain = errors(fitted(model, x), x, model.compile())
    assert fast <= max(TIMES * plain, LEAST)


def test_snapshot():
    x = np.random.default_rng(0).standard_normal((2, 1, 32, 32)).astype(np.float32)
    model = models.lenet()
    fast = model.compile()
    before = fast(x).numpy()
    for parameter in model.parameters():
        parameter.data += 0.25
    assert np.array_equal(fast(x).numpy(), before)
    assert not np.allclose(model.compile()(x).numpy(), before)
    assert model.training


def test_calls_do_not_disturb_each_other():
    rng, fast = np.random.default_rng(0), models.lenet().compile()
    inputs = [rng.standard_normal((n, 1, 32, 32)).astype(np.float32) for n in (1, 3, 2, 5, 4, 6, 1)]
    found = [fast(x).numpy() for x in inputs]
    again = [fast(x).numpy() for x in inputs]
    assert all(map(np.array_equal, found, again))
    assert fast(inputs[0][:0]).shape == (0, 10)


def test_strides_of_the_input_do_not_matter():
    x = np.random.default_rng(0).standard_normal((2, 1, 64, 64)).astype(np.float32)
    fast = models.lenet().compile()
    part = x[::-1, :, ::2, ::-2]
    assert np.array_equal(fast(part).numpy(), fast(part.copy()).numpy())


ORDERS = {
    "columns": np.asfortranarray,
    "filters and channels exchanged": lambda w: w.swapaxes(0, 1).copy().swapaxes(0, 1),
    "reversed": lambda w: w[::-1].copy()[::-1],
}


@pytest.mark.parametrize("order", ORDERS)
def test_weights_may_lie_in_any_order(order):
    model = nn.Sequential(
        nn.Conv2d(2, 32, 5, rng=0), nn.Conv2d(32, 40, 3, rng=1), nn.Conv2d(40, 3, 1, rng=2),
        nn.Flatten(), nn.Linear(3 * 4 * 5, 7, rng=3),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((4, 2, 10, 11)).astype(np.float32)
    with no_grad():
        expected = model(x).numpy()
    for layer in model:
        if hasattr(layer, "weight"):
            layer.weight.data = ORDERS[order](layer.weight.data)
            assert not layer.weight.data.flags.c_contiguous
    np.testing.assert_allclose(model.compile()(x).numpy(), expected, rtol=1e-4, atol=1e-5)


class BySize(nn.Module):
    """Its steps are others for large images, and one of its steps reads other weights."""

    def __init__(self):
        super().__init__()
        self.first, self.large, self.small = (
            nn.Conv2d(4, 4, 3, padding=1, rng=i) for i in (0, 1, 2)
        )

    def forward(self, x):
        last = self.large if x.shape[3] > 8 else self.small
        return last(self.first(F.max_pool2d(x, 2) if x.shape[2] > 8 else x))


def test_steps_may_depend_on_the_size_of_the_images():
    x = np.random.default_rng(0).standard_normal((2, 4, 12, 12)).astype(np.float32)
    model = BySize().eval()
    compiled = model.compile()
    for H, W in [(12, 12), (8, 12), (12, 8), (8, 8), (12, 12)]:
        with no_grad():
            expected = model(x[:, :, :H, :W]).numpy()
        found = compiled(x[:, :, :H, :W]).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_are_packed_once_for_all_shapes():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))
    compiled, found = model.eval().compile(), set()
    for count in (1, 2, 3):
        compiled(np.zeros((count, 4, 4, 4), np.float32))
        found.add(tuple(id(packed) for _, packed in compiled._packed.values()))
    assert len(found) == 1


def test_a_pool_that_nobody_reads_and_reshapes_to_any_number_of_axes():
    conv = nn.Conv2d(4, 4, 3, padding=1, rng=0)

    def forward(x):
        F.max_pool2d(F.relu(conv(x)), 2)
        grouped = F.relu(x.reshape((len(x), 2, 2, 6, 5)))
        return grouped.reshape((len(x), 12, -1)).reshape((len(x), -1))

    model = Function(forward).eval()
    model.conv = conv
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 5)).astype(np.float32)
    assert np.array_equal(model.compile()(x).numpy(), np.maximum(x, 0).reshape(3, -1))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_what_cannot_be_compiled():
    x = np.zeros((1, 1, 32, 32), np.float32)
    with pytest.raises(ValueError, match="compile is for cpu"):
        models.lenet().to("reference").compile()
    with pytest.raises(ValueError, match="weight is float64"):
        models.lenet().to(dtype=np.float64).compile()
    with pytest.raises(ValueError, match="on cpu, got float64"):
        models.lenet().compile()(x.astype(np.float64))
    with pytest.raises(ValueError, match="does not fit"):
        models.lenet().compile()(x[:, :, :3])
    for forward, message in [
        (lambda x: x if float(x.sum()) > 0 else -x, "depends on values"),
        (lambda x: (x, x), "one tensor"),
        (lambda x: x[:, :, ::2], "index cannot be compiled"),
        (lambda x: x + np.ones(x.shape, np.float32), "constant"),
        (nn.BatchNorm2d(1, track_running_stats=False), "mixes the images"),
    ]:
        with pytest.raises(ValueError, match=message):
            Function(forward).compile()(x)
