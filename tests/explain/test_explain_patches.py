"""Receptive fields against brute force: touch a pixel, see what changes. Strongest patches against
a search by loops.
"""

import numpy as np
import pytest
from explained import BLOCKS_SHAPE, CHAIN_SHAPE, blocks, chain, images, made

from gpuconv import data, explain, models, nn
from gpuconv.explain.patches import cut


def positive(network):
    """Weights and statistics for which no pixel's growth can be lost: all above 0."""
    for name, parameter in network.named_parameters():
        parameter.data[...] = np.abs(parameter.data) + 0.1 * ("weight" in name)
    for name, buffer in network.named_buffers():
        if "running_mean" in name:
            buffer.data[...] = 0
    return network


def boxes_by_touching(network, shape, layers):
    """For each layer, for each unit (p, q), the box of the pixels whose change changes it."""
    _, H, W = shape
    x = np.abs(images(shape, 1))
    touched = np.repeat(x, H * W, axis=0)
    for i, (h, v) in enumerate(np.ndindex(H, W)):
        touched[i, :, h, v] += 100
    before = explain.activations(network, x, layers)
    after = explain.activations(network, touched, layers)
    found = {}
    for name in layers:
        changed = np.abs(after[name] - before[name]) > 1e-7  # matrix products round by batch size
        if changed.ndim == 2:
            changed = changed[:, :, None, None]
        changed = changed.any(axis=1).reshape(H, W, *changed.shape[2:])
        found[name] = {
            unit: enclosing(changed[(..., *unit)]) for unit in np.ndindex(changed.shape[2:])
        }
    return found


def enclosing(seen):
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return (0, 0, 0, 0)
    return (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


def check(network, shape):
    layers = [name for name, _ in network.named_modules() if name]
    for name, boxes in boxes_by_touching(network, shape, layers).items():
        field = explain.receptive_field(network, name, shape)
        assert (len(field.rows), len(field.columns)) == tuple(np.add(list(boxes)[-1], 1)), name
        for unit, box in boxes.items():
            assert field.box(*unit) == box, (name, unit)
        heights = [box[1] - box[0] for box in boxes.values()]
        widths = [box[3] - box[2] for box in boxes.values()]
        assert field.size == (max(heights), max(widths)), name


@pytest.mark.parametrize(("build", "shape"), [(chain, CHAIN_SHAPE), (blocks, BLOCKS_SHAPE)])
def test_fields_equal_touching_every_pixel(build, shape):
    check(positive(made(build)), shape)


@pytest.mark.parametrize("seed", range(20))
def test_fields_of_random_windows(seed):
    """Rows of windows with gaps, overlap, dilation, uneven padding, ceil_mode."""
    rng = np.random.default_rng([21, seed])
    shape, layers = (1, int(rng.integers(7, 14)), int(rng.integers(7, 14))), []
    size = shape
    for _ in range(int(rng.integers(2, 5))):
        kernel, stride, dilation = (tuple(map(int, rng.integers(1, m, 2))) for m in (4, 4, 3))
        pads = tuple(tuple(map(int, rng.integers(0, 2 + k // 2, 2))) for k in kernel)
        kind = rng.choice(["conv", "max", "average", "sum", "adaptive"])
        if kind == "conv":
            layer = nn.Conv2d(1, 1, kernel, stride, pads, dilation)
        elif kind == "adaptive":
            layer = nn.AdaptiveAvgPool2d(tuple(map(int, rng.integers(1, 6, 2))))
        else:
            pads = tuple(
                tuple(min(a, k // 2) for a in p) for p, k in zip(pads, kernel, strict=True)
            )
            make = {"max": nn.MaxPool2d, "average": nn.AvgPool2d, "sum": nn.SumPool2d}[kind]
            layer = make(kernel, stride, pads, ceil_mode=bool(rng.random() < 0.5))
        try:
            size = nn.output_shape(layer, size)
        except ValueError:  # the window does not fit what is left
            continue
        layers += [layer, nn.ReLU()]
    check(positive(nn.Sequential(*layers).to("reference", np.float64)), shape)


def test_fields_of_known_networks():
    """Each window adds (size - 1) times the strides before it. VGG-16: Araujo et al. 2019."""
    # 7x7/2, pool 3/2; then 3, 4, 6, 3 blocks whose 3x3 has the stride in the first
    side = 1 + 6 + 2 * 2 + 3 * 2 * 4 + (2 * 4 + 3 * 2 * 8) + (2 * 8 + 5 * 2 * 16)
    side += 2 * 16 + 2 * 2 * 32
    resnet = models.resnet50(seed=None)
    assert explain.receptive_field(resnet, "layer4", (3, 1024, 1024)).size == (side, side)
    vgg = models.vgg16(seed=None)
    field = explain.receptive_field(vgg, "features.30", (3, 480, 512))
    assert field.size == (212, 212)
    lenet = explain.receptive_field(models.lenet(), "pool1")
    assert lenet.size == (6, 6)
    assert lenet.box(1, 2) == (2, 8, 4, 10)
    assert explain.receptive_field(models.lenet(), "fc3").box() == (0, 32, 0, 32)


def test_fields_that_cannot_be_told():
    with pytest.raises(ValueError, match="unknown layer 'conv9'"):
        explain.receptive_field(models.lenet(), "conv9")
    with pytest.raises(ValueError, match=r"must be \(channels, height, width\), got None"):
        explain.receptive_field(nn.Sequential(nn.ReLU()), "0")
    with pytest.raises(ValueError, match="conv2: conv2d: a window of 5x5 pixels"):
        explain.receptive_field(models.lenet(), "fc1", (1, 10, 10))

    class Roll(nn.Module):
        def forward(self, x):
            return x[:, :, ::-1]

    with pytest.raises(NotImplementedError, match="roll runs index; which pixels that reads"):
        explain.receptive_field(nn.Sequential(roll=Roll()), "roll", (1, 4, 4))


def search(network, x, layer, count):
    """The strongest place of each filter in each image, by looking at every one."""
    maps = explain.activations(network, x)[layer]
    maps = maps[:, :, None, None] if maps.ndim == 2 else maps
    best = []
    for k in range(maps.shape[1]):
        found = []
        for n in range(len(x)):
            value, unit = -np.inf, None
            for p, q in np.ndindex(maps.shape[2:]):
                if maps[n, k, p, q] > value:
                    value, unit = maps[n, k, p, q], (p, q)
            found.append((-value, n, unit))
        best.append([(n, unit, -value) for value, n, unit in sorted(found)[:count]])
    return best


@pytest.mark.parametrize(
    ("build", "shape", "layer"),
    [(chain, CHAIN_SHAPE, "relu1"), (chain, CHAIN_SHAPE, "fc1"), (blocks, BLOCKS_SHAPE, "dense")],
)
def test_top_activating_patches_equal_a_search(build, shape, layer):
    network, x = made(build), images(shape, 11)
    if layer != "fc1":  # whose matrix products round by the place in the batch
        x[7] = x[2]  # a tie between images, and by ReLU many within them
    expected = search(network, x, layer, 4)
    field = explain.receptive_field(network, layer, shape)
    loader = [(x[:3], None), (x[3:4], None), (x[4:], None)]
    for given in ((x, 256), (x, 5), (loader, 1)):
        found = explain.top_activating_patches(network, given[0], layer, 4, batch=given[1])
        for k, patches in enumerate(found):
            assert [(p.image, p.unit) for p in patches] == [best[:2] for best in expected[k]]
            np.testing.assert_allclose([p.value for p in patches], [b[2] for b in expected[k]])
            assert all(patch.filter == k for patch in patches)
            assert all(patch.box == field.box(*patch.unit) for patch in patches)
    some = explain.top_activating_patches(network, x, layer, 20, filters=[2, 0])
    assert [len(patches) for patches in some] == [11, 11]
    assert [patches[0].filter for patches in some] == [2, 0]


def test_projections_are_deconvnets_within_the_patch_and_nothing_lies_outside():
    network, x = made(blocks), images(BLOCKS_SHAPE, 6)
    patches = [row[0] for row in explain.top_activating_patches(network, x, "wide", 1)]
    found = explain.projections(network, x, patches, "wide", batch=3)
    for patch, projection in zip(patches, found, strict=True):
        unit = (patch.filter, *patch.unit)
        whole = explain.deconvnet(network, x[patch.image : patch.image + 1], unit, "wide")[0]
        np.testing.assert_allclose(projection, cut(whole, patch.box), 1e-12, 1e-15)
        top, bottom, left, right = patch.box
        whole[:, top:bottom, left:right] = 0
        assert not whole.any()
    last = [row[0] for row in explain.top_activating_patches(network, x, "fc", 1)]
    assert explain.projections(network, x, last, "fc")[0].shape == BLOCKS_SHAPE


def test_patches_from_a_loader_have_the_data_sets_numbers():
    network = models.lenet()
    digits = data.load("mnist", "test").subset(slice(0, 60))
    loader = data.Loader(digits, 25, shuffle=False, size=32)
    found = explain.top_activating_patches(network, loader, "conv1", count=3)
    x = digits.batch(np.arange(60), size=32)
    assert found == explain.top_activating_patches(network, x, "conv1", count=3, batch=25)
    assert loader.epoch == 0


def test_patches_that_cannot_be_told():
    network, x = made(chain), images(CHAIN_SHAPE)
    with pytest.raises(ValueError, match="count must be at least 1"):
        explain.top_activating_patches(network, x, "conv1", 0)
    with pytest.raises(ValueError, match="has filters 0 to 3, not 4"):
        explain.top_activating_patches(network, x, "conv1", filters=[4])
    with pytest.raises(ValueError, match="there are no images"):
        explain.top_activating_patches(network, [], "conv1")
    loader = data.Loader(data.Dataset(np.zeros((2, 2, 9, 8), np.uint8), [0, 1]), 1)
    with pytest.raises(ValueError, match="the loader shuffles"):
        explain.top_activating_patches(network, loader, "conv1")
    x[1, 0, 4, 4] = np.nan
    with pytest.raises(ValueError, match="layer conv1 gives NaN"):
        explain.top_activating_patches(network, x, "conv1")
