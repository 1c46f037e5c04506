"""The models: counts, shapes and keys against the published tables, and what they refuse."""

import csv
import inspect
import json

import numpy as np
import pytest
from stored import stored

from gpuconv import models, nn
from gpuconv.nn.summary import parameter_count, summary

# table, model, arguments, (parameters, buffers, tensors of the state, multiply-adds)
TOTALS = [
    ("lenet_article_harley", "lenet", {}, (63_802, 0, 10, 418_600)),
    ("lenet5_modern", "lenet5", {}, (61_706, 0, 10, 416_520)),
    ("alexnet_2012_groups2", "alexnet_2012", {}, (60_965_224, 0, 16, 724_406_816)),
    (
        "alexnet_2012_nogroups",
        "alexnet_2012",
        {"groups": 1},
        (62_378_344, 0, 16, 1_135_256_096),
    ),
    ("alexnet_torchvision", "alexnet", {}, (61_100_840, 0, 16, 714_188_480)),
    ("zfnet", "zfnet", {}, (62_357_608, 0, 16, 1_168_032_896)),
    ("googlenet_paper", "googlenet_paper", {}, (6_998_552, 0, 116, 1_582_671_872)),
    (
        "googlenet_paper_aux",
        "googlenet_paper",
        {"aux": True},
        (13_378_280, 0, 128, 1_591_044_096),
    ),
    ("googlenet_torchvision", "googlenet", {}, (6_624_904, 14_617, 344, 1_498_376_192)),
    (
        "googlenet_torchvision_aux",
        "googlenet",
        {"aux": True},
        (13_004_888, 15_131, 364, 1_506_748_416),
    ),
    ("vgg16", "vgg16", {}, (138_357_544, 0, 32, 15_470_264_320)),
    ("vgg19", "vgg19", {}, (143_667_240, 0, 38, 19_632_062_464)),
    ("vgg16_bn", "vgg16_bn", {}, (138_365_992, 8_461, 97, 15_470_264_320)),
    ("resnet18", "resnet18", {}, (11_689_512, 9_620, 122, 1_814_073_344)),
    ("resnet34", "resnet34", {}, (21_797_672, 17_060, 218, 3_663_761_408)),
    ("resnet50", "resnet50", {}, (25_557_032, 53_173, 320, 4_089_184_256)),
    ("densenet121", "densenet121", {}, (7_978_856, 83_769, 727, 2_834_161_664)),
]
# what torchvision does in functions, so that its tables have no row for it
FUNCTIONS = ("Flatten", "Identity", "ReLU", "AdaptiveAvgPool2d", "AvgPool2d", "Dropout")
KEYS = {
    "alexnet": ["features.10.bias", "classifier.6.weight"],
    "vgg16_bn": ["features.40.weight", "features.41.running_var", "classifier.3.bias"],
    "resnet18": ["bn1.num_batches_tracked", "layer1.0.conv1.weight", "layer2.0.downsample.1.bias"],
    "resnet50": ["layer1.0.downsample.0.weight", "layer4.2.bn3.running_mean", "fc.bias"],
    "densenet121": [
        "features.conv0.weight",
        "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock4.denselayer16.conv2.weight",
        "features.transition3.conv.weight",
        "features.norm5.running_mean",
        "classifier.weight",
    ],
    "googlenet": ["conv1.conv.weight", "inception3a.branch2.1.conv.weight", "fc.weight"],
}
SMALL = {"alexnet": 67, "alexnet_2012": 67, "zfnet": 64, "googlenet_paper": 80, "googlenet": 64}


def of_name(name, arguments, **more):
    return models.MODELS[name](**arguments, **more, seed=None)


@pytest.mark.parametrize(("table", "name", "arguments", "totals"), TOTALS)
def test_totals(table, name, arguments, totals):
    network = of_name(name, arguments)
    found = summary(network)
    tensors = len(network.state_dict())
    assert (found.parameters, found.buffers, tensors, found.multiply_adds) == totals
    assert found.error is None
    assert f"{totals[0]:,}" in str(found)


@pytest.mark.parametrize(("table", "name", "arguments", "totals"), TOTALS)
def test_every_row_equals_the_table(table, name, arguments, totals):
    with stored("architectures", f"{table}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = iter(summary(of_name(name, arguments)).rows)
    if table == "googlenet_torchvision_aux":  # its heads are not in its table
        ours = (row for row in ours if not row.name.startswith("aux"))
    for expected in rows:
        if expected["type"] == "Softmax":  # the losses take scores
            continue
        row = next(ours)
        while not same_kind(row, expected):
            assert type(row.module).__name__ in FUNCTIONS, f"{row.name}, not {expected['name']}"
            row = next(ours)
        assert json.loads(expected["in"]) == list(row.input_shape), row.name
        assert json.loads(expected["out"]) == list(row.output_shape), row.name
        assert int(expected["params"]) == parameter_count(row.module)
        assert int(expected["buffers"]) == sum(b.data.size for b in row.module.buffers())
        assert int(expected["macs"]) == row.multiply_adds
        if int(expected["params"]) and not name.startswith("lenet"):
            assert row.name == expected["name"]
    assert {type(row.module).__name__ for row in ours} <= set(FUNCTIONS)


def same_kind(row, expected):
    return type(row.module).__name__ == expected["type"] and list(row.output_shape) == json.loads(
        expected["out"]
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ("vgg16", "vgg19") else [])  # as vgg16_bn
        for n in sorted(models.MODELS)
    ],
)
def test_traced_shapes_are_the_real_ones(name):
    takes = inspect.signature(models.MODELS[name]).parameters
    sized = {"input_size": SMALL.get(name, 32)} if "input_size" in takes else {}
    aux = {"aux": True} if "aux" in takes else {}
    network = of_name(name, {**sized, **aux}, num_classes=5, in_channels=2)
    for parameter in network.parameters():
        parameter.data[...] = 0
    seen = {}
    for path, module in network.named_modules():
        module.register_forward_hook(record(seen, path))
    found = summary(network)
    assert found.error is None
    seen.clear()
    y = network(np.ones((2, *found.input), np.float32))
    assert (y[0] if aux else y).shape == (2, 5)
    for row in found.rows:
        assert row.output_shape in seen[row.name], row.name
    nn.AuxiliaryLoss()(y, np.array([0, 1])).backward()


def record(seen, path):
    def recorded(module, inputs, y):
        if not isinstance(y, tuple):
            seen.setdefault(path, []).append(y.shape[1:])

    return recorded


@pytest.mark.parametrize("name", sorted(KEYS))
def test_keys_are_torchvisions(name):
    state = of_name(name, {}).state_dict()
    assert set(KEYS[name]) <= set(state)
    for key, value in state.items():
        tracked = key.endswith("num_batches_tracked")
        assert value.dtype == (np.int64 if tracked else np.float32), key


def test_heads_come_after_the_blocks_in_the_state_as_in_torchvision():
    keys = list(of_name("googlenet", {"aux": True}).state_dict())
    first = keys.index("aux1.conv.conv.weight")
    assert keys[first - 1] == "inception5b.branch4.1.bn.num_batches_tracked"
    assert keys[-2:] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_the_small_stem_keeps_small_images_large(name):
    network = of_name(name, {"stem": "small", "input_size": 32, "num_classes": 10})
    found = summary(network)
    assert found.rows[0].output_shape == (64, 32, 32)
    assert found.error is None
    assert not any(type(row.module).__name__ == "MaxPool2d" for row in found.rows)
    assert network.spec["arguments"]["stem"] == "small"
    with pytest.raises(ValueError, match="unknown stem 'smal'; did you mean 'small'"):
        models.MODELS[name](stem="smal")


def test_images_too_small_for_a_model_are_refused_when_it_is_built():
    with pytest.raises(ValueError, match="does not fit"):
        models.alexnet_2012(input_size=32)
    with pytest.raises(ValueError, match="does not fit"):
        models.googlenet_paper(aux=True, input_size=64)


def test_first_weights_are_the_published_ones():
    state = models.resnet18(num_classes=2).state_dict()
    fan_out = 64 * 9
    assert state["layer1.0.conv1.weight"].var() == pytest.approx(2 / fan_out, rel=0.05)
    assert (state["layer1.0.bn1.weight"] == 1).all()
    assert (state["bn1.running_var"] == 1).all()
    state = models.alexnet_2012(num_classes=2, input_size=67).state_dict()
    assert state["conv3.weight"].std() == pytest.approx(0.01, rel=0.01)
    assert (state["conv2.bias"] == 1).all()
    assert (state["conv3.bias"] == 0).all()
    again = models.resnet18(num_classes=2).state_dict()
    np.testing.assert_array_equal(again["fc.weight"], models.resnet18(2).state_dict()["fc.weight"])
