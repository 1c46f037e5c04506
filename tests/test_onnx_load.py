"""ONNX files as networks: files of other programs against onnxruntime, and what is refused."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
from random_networks import RandomNetwork

import gpuconv
from gpuconv import models, nn, optim

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_runs import compare, outputs, runtime  # noqa: E402

from gpuconv.onnx import export, load  # noqa: E402

pytestmark = pytest.mark.onnx
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
RNG = np.random.default_rng(0)


def check(path, shape, batch=1, **options):
    """Load a file, compare it with onnxruntime, return the network."""
    network = load(path, **options)
    x = np.random.default_rng(1).standard_normal((batch, *shape)).astype(np.float32)
    compare(outputs(network, x), runtime(path, x))
    return network


# ---- files that we wrote -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "googlenet_paper", "densenet121"])
def test_models_there_and_back(name, tmp_path):
    network = models.MODELS[name](seed=0)
    export(network, tmp_path / "net.onnx")
    back = check(tmp_path / "net.onnx", network.input_shape, batch=2)
    assert back.input_shape == network.input_shape
    state, expected = back.state_dict(), network.state_dict()
    assert state.keys() == expected.keys()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_there_and_back(seed, tmp_path):
    network = RandomNetwork(seed)
    network.to("cpu", np.float32)
    export(network, tmp_path / "net.onnx", network.x.shape[1:])
    x = np.float32(network.x)
    compare(outputs(load(tmp_path / "net.onnx"), x), outputs(network, x))


def test_a_new_head_training_and_a_checkpoint(tmp_path):
    export(models.lenet(seed=0), tmp_path / "net.onnx")
    network = load(tmp_path / "net.onnx").requires_grad_(False)
    network.fc3 = nn.Linear(100, 3, rng=0)
    x = np.random.default_rng(0).random((6, 1, 32, 32), dtype=np.float32)
    labels, criterion = np.arange(6) % 3, nn.CrossEntropyLoss()
    network.fc2.requires_grad_(True)
    optimizer = optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = criterion(network.train()(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    before = models.lenet(seed=0).state_dict()
    for name, value in network.state_dict().items():
        if not name.startswith("fc3"):
            assert np.array_equal(value, before[name]) == (not name.startswith("fc2")), name
    gpuconv.save(network, tmp_path / "tuned.safetensors")
    again = load(tmp_path / "net.onnx")
    again.fc3 = nn.Linear(100, 3)
    again.load_state_dict(gpuconv.checkpoint.read(tmp_path / "tuned.safetensors").weights)
    compare(outputs(again, x), outputs(network, x))
    export(again, tmp_path / "tuned.onnx")
    compare(runtime(tmp_path / "tuned.onnx", x), outputs(network, x))


# ---- files of others -----------------------------------------------------------------------------


def with_weights(source, target):
    """Structures of the package onnx, whose weights are nodes that make constants: seeded numbers
    take their place. The last Softmax is left out: most of its values would be 0.
    """
    file = onnx.load(source)
    graph, rng = file.graph, np.random.default_rng(0)
    shapes = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shape = tuple(shapes[node.input[0]])
            if len(shape) > 1:
                array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            else:
                array = rng.uniform(0.5, 1.0, shape)
            graph.initializer.append(numpy_helper.from_array(np.float32(array), node.output[0]))
    if nodes[-1].op_type == "Softmax":
        graph.output[0].name = nodes.pop().input[0]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(file, target)


LARGE = ("light_bvlc_alexnet", "light_vgg19", "light_zfnet512")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[pytest.mark.slow] * (path.stem in LARGE))
        for path in sorted((DATA / "light").glob("*.onnx"))
    ],
)
def test_architectures_of_other_frameworks(name, tmp_path):
    """Written by Caffe2 for one image: DenseNet, GoogLeNet, ResNet, ShuffleNet, SqueezeNet, ..."""
    with_weights(DATA / "light" / f"{name}.onnx", tmp_path / "net.onnx")
    network = check(tmp_path / "net.onnx", (3, 224, 224))
    with gpuconv.no_grad():
        assert network(np.zeros((2, 3, 224, 224), np.float32)).shape[0] == 2


def test_the_structures_are_there():
    assert len(list((DATA / "light").glob("*.onnx"))) >= 9


SINGLE = sorted(
    path.parent
    for kind in ("pytorch-converted", "pytorch-operator", "simple")
    for path in (DATA / kind).glob("*/model.onnx")
)


def test_single_operators_of_onnxs_own_tests(tmp_path):
    """Those of one float input give the expected output, or are refused."""
    agreed = 0
    for folder in SINGLE:
        file = onnx.load(folder / "model.onnx")
        arrays = {}
        for kind in ("input", "output"):
            found = sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"))
            arrays[kind] = [numpy_helper.to_array(onnx.load_tensor(path)) for path in found]
        if not arrays["input"] or arrays["input"][0].dtype != np.float32:
            continue
        stored = {one.name for one in file.graph.initializer}
        free = [one.name for one in file.graph.input if one.name not in stored]
        for name, array in list(zip(free, arrays["input"], strict=True))[1:]:
            file.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.save(file, tmp_path / "net.onnx")
        try:
            with np.errstate(invalid="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # the root of -1
                y = outputs(load(tmp_path / "net.onnx"), arrays["input"][0])
        except (NotImplementedError, ValueError):
            continue
        for a, b in zip(y, arrays["output"], strict=True):
            assert a.shape == b.shape, folder
            np.testing.assert_allclose(a, b, 1e-4, 1e-5, err_msg=str(folder))
        agreed += 1
    assert agreed >= 50


def trained(name):
    """A model of the package rapidocr-onnxruntime, which need not be importable."""
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    if found is None:
        pytest.skip("rapidocr-onnxruntime, which has trained models, is not installed")
    return Path(found.origin).parent / "models" / name


def test_a_trained_classifier_of_paddlepaddle():
    """Which way up a line of text is: a MobileNetV3."""
    path = trained("ch_ppocr_mobile_v2.0_cls_infer.onnx")
    network = check(path, (3, 48, 192), batch=3)
    assert "conv1.weight" in network.state_dict()
    check(path, (3, 48, 192), input_shape=(3, 48, 192))


def test_a_trained_text_recogniser_with_attention():
    check(trained("ch_PP-OCRv4_rec_infer.onnx"), (3, 48, 96), input_shape=(3, 48, 96))


def test_an_operator_that_is_lacking_is_named():
    with pytest.raises(NotImplementedError, match=r"Resize .* gpuconv has no such operator"):
        load(trained("ch_PP-OCRv4_det_infer.onnx"))


@pytest.mark.torch
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", ["mobile", "classic"])
def test_files_of_pytorchs_exporters(name, dynamo, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript, of PyTorch's exporter, is not installed")
    import onnx_torch_networks

    torch.manual_seed(0)
    network = onnx_torch_networks.NETWORKS[name]().eval()
    for layer in network.modules():
        if hasattr(layer, "running_var"):
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
            torch.nn.init.normal_(layer.running_mean)
    path, x = tmp_path / "net.onnx", torch.randn(2, 3, 18, 17)
    if dynamo:
        options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False}
    else:
        options = {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, x, path, dynamo=dynamo, **options)
    found = check(path, (3, 18, 17), batch=3)
    with torch.no_grad():
        expected = network(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    compare(outputs(found, x.numpy()), [y.numpy() for y in expected])
    layers = {name for name, value in network.state_dict().items() if value.ndim == 4}
    assert layers <= found.state_dict().keys()


# ---- small graphs --------------------------------------------------------------------------------


def graph(path, nodes, shape, opset=20, **arrays):
    """A file of nodes (operator, inputs, output, attributes) that end in "y"."""
    made = [
        helper.make_node(op, inputs, outputs if isinstance(outputs, list) else [outputs], **rest)
        for op, inputs, outputs, rest in nodes
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    model = helper.make_model(
        helper.make_graph(made, "graph", [x], [y], stored),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=8,
    )  # fmt: skip
    onnx.save(model, path)
    return path


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE = ["batch", 4, 9, 8]
W = {"w": drawn(6, 4, 3, 3)}
GRAPHS = {
    "convolution, padding before it, bias behind it": (
        [("Pad", ["x", "p"], "a", {}), ("Conv", ["a", "w"], "b", {"pads": [0, 1, 1, 0]}),
         ("Add", ["b", "c"], "y", {})],
        {**W, "p": np.int64([0, 0, 1, 2, 0, 0, 0, 1]), "c": drawn(1, 6, 1, 1)}, 1,
    ),
    "max-pool, padding before it": (
        [("Pad", ["x", "p", "v"], "a", {}),
         ("MaxPool", ["a"], "y", {"kernel_shape": [3, 3], "strides": [2, 2]})],
        {"p": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "v": np.float32(-np.inf)}, 1,
    ),
    "max-pool of zeros around": (
        [("Pad", ["x", "p"], "a", {}), ("MaxPool", ["a"], "y", {"kernel_shape": [2, 3]})],
        {"p": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}, 2,
    ),
    "same padding above": (
        [("Conv", ["x", "w"], "y", {"auto_pad": "SAME_UPPER", "strides": [2, 3]})], W, 1,
    ),
    "same padding below": (
        [("Conv", ["x", "w"], "y", {"auto_pad": "SAME_LOWER", "strides": [2, 3]})], W, 1,
    ),
    "fully connected, transposed and scaled": (
        [("Flatten", ["x"], "a", {}), ("Gemm", ["a", "w", "b"], "y", {"alpha": 0.5, "beta": 2.0})],
        {"w": drawn(288, 5), "b": drawn(1, 5)}, 2,
    ),
    "product, then bias": (
        [("Reshape", ["x", "s"], "a", {}), ("MatMul", ["a", "w"], "b", {}),
         ("Add", ["c", "b"], "y", {})],
        {"s": np.int64([0, -1]), "w": drawn(288, 5), "c": drawn(5)}, 2,
    ),
    "scale and shift of each channel": (
        [("Sub", ["x", "m"], "a", {}), ("Div", ["a", "s"], "b", {}), ("Mul", ["t", "b"], "c", {}),
         ("Add", ["c", "u"], "y", {})],
        {"m": drawn(4, 1, 1), "s": np.float32([1, 2, 3, 4]).reshape(1, 4, 1, 1),
         "t": drawn(4, 1, 1), "u": drawn(1, 4, 1, 1)}, 3,
    ),
    "ReLU6 and its likes": (
        [("Clip", ["x", "low", "six"], "a", {}), ("HardSwish", ["a"], "b", {}),
         ("HardSigmoid", ["b"], "c", {"alpha": 0.3}), ("Clip", ["c", "", "half"], "d", {}),
         ("Neg", ["d"], "y", {})],
        {"low": np.float32(-0.5), "six": np.float32(6), "half": np.float32(0.5)}, 5,
    ),
    "a shape computed from the input's": (
        [("Shape", ["x"], "a", {}), ("Gather", ["a", "zero"], "b", {}),
         ("Unsqueeze", ["b", "axis"], "c", {}), ("Concat", ["c", "rest"], "d", {"axis": 0}),
         ("Reshape", ["x", "d"], "y", {})],
        {"zero": np.int64(0), "axis": np.int64([0]), "rest": np.int64([2, -1])}, 5,
    ),
    "channels shuffled, cut and joined": (
        [("Reshape", ["x", "five"], "a", {}), ("Transpose", ["a"], "b", {"perm": [0, 2, 1, 3, 4]}),
         ("Reshape", ["b", "four"], "c", {}),
         ("Split", ["c"], ["d", "e"], {"axis": 1, "num_outputs": 2}),
         ("Slice", ["e", "one", "end", "axis"], "f", {}), ("Concat", ["f", "d"], "y", {"axis": 1})],
        {"five": np.int64([0, 2, 2, 9, 8]), "four": np.int64([0, 4, 9, 8]), "one": np.int64([1]),
         "end": np.int64([2**62]), "axis": np.int64([1])}, 6,
    ),
    "means": (
        [("ReduceMean", ["x", "hw"], "a", {"keepdims": 0}), ("Unsqueeze", ["a", "hw"], "b", {}),
         ("Sub", ["x", "b"], "c", {}), ("ReduceMean", ["c", "last"], "d", {}),
         ("Squeeze", ["d", "last"], "e", {}), ("Softmax", ["e"], "y", {})],
        {"hw": np.int64([2, 3]), "last": np.int64([-1])}, 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graphs(name, tmp_path):
    nodes, arrays, steps = GRAPHS[name]
    path = graph(tmp_path / "net.onnx", nodes, IMAGE, **arrays)
    network = check(path, (4, 9, 8), batch=3)
    assert len(network._steps) == steps


def test_a_layer_used_twice_is_trained_as_one(tmp_path):
    nodes = [("Conv", ["x", "a.weight"], "a", {}), ("Conv", ["a", "a.weight"], "y", {})]
    network = check(
        graph(tmp_path / "net.onnx", nodes, IMAGE, **{"a.weight": drawn(4, 4, 2, 2)}), IMAGE[1:]
    )
    assert len(network.parameters()) == 1


def test_products_that_share_their_numbers_stay_apart(tmp_path):
    nodes = [
        ("Mul", ["x", "c"], "a", {}),
        ("Div", ["a", "c"], "b", {}),
        ("Mul", ["b", "c"], "y", {}),
    ]
    path = graph(tmp_path / "net.onnx", nodes, IMAGE, c=drawn(4, 1, 1) + 2)
    check(path, IMAGE[1:])


def test_several_inputs(tmp_path):
    path = graph(tmp_path / "net.onnx", [("Sub", ["x", "x2"], "y", {})], [2, 3])
    file = onnx.load(path)
    file.graph.input.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, [2, 3]))
    onnx.save(file, path)
    network, (a, b) = load(path), drawn(2, 2, 3)
    assert network.input_names == ["x", "x2"]
    np.testing.assert_array_equal(network(a, b).numpy(), a - b)
    with pytest.raises(TypeError, match="takes x, x2, got 1 inputs"):
        network(a)


def test_in_the_simulator(tmp_path):
    pytest.importorskip("simulated")
    for name in (
        "convolution, padding before it, bias behind it",
        "scale and shift of each channel",
    ):
        nodes, arrays, _ = GRAPHS[name]
        path = graph(tmp_path / "net.onnx", nodes, IMAGE, **arrays)
        x = np.random.default_rng(1).standard_normal((2, 4, 9, 8)).astype(np.float32)
        network = load(path).to("sim")
        found = network(gpuconv.to_device(x, "sim")).numpy()
        compare([found], runtime(path, x))


REFUSED = {
    "Erf 'e'": ([("Erf", ["x"], "y", {"name": "e"})], {}),
    "FancyConv 'f'": ([("FancyConv", ["x"], "y", {"name": "f", "domain": "mine"})], {}),
    "ConvTranspose": ([("ConvTranspose", ["x", "w"], "y", {})], {"w": drawn(4, 2, 3, 3)}),
    "its weights must be stored": ([("Conv", ["x", "x"], "y", {})], {}),
    "only an odd size": ([("LRN", ["x"], "y", {"size": 4})], {}),
    "training mode": (
        [("BatchNormalization", ["x", "s", "s", "s", "s"], ["y", "m", "v"], {"training_mode": 1})],
        {"s": np.ones(4, np.float32)},
    ),
    "only a constant around height": ([("Pad", ["x", "p"], "y", {"mode": "edge"})],
                                      {"p": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}),
    "x has 4 channels": ([("Conv", ["x", "w"], "y", {"name": "c"})], {"w": drawn(2, 3, 3, 3)}),
    "joined along the channels": ([("Concat", ["x", "x"], "y", {"axis": 2})], {}),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_gpuconv_lacks_is_named_in_one_line(message, tmp_path):
    nodes, arrays = REFUSED[message]
    path = graph(tmp_path / "net.onnx", nodes, IMAGE, **arrays)
    with pytest.raises((NotImplementedError, ValueError), match=message) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_files_that_are_damaged_or_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load(tmp_path / "none.onnx")
    whole = graph(tmp_path / "net.onnx", [("Conv", ["x", "w"], "y", {})], IMAGE, **W).read_bytes()
    for content in (b"", b"hello", whole[:-300], whole[:40], b"\x08\x07" * 50):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.onnx: ") as raised:
            load(tmp_path / "bad.onnx")
        assert "\n" not in str(raised.value)
    for wrong in (
        [("Conv", ["x", "a"], "y", {})],
        [("Relu", ["a"], "y", {})],
        [("Relu", ["x"], "a", {})],
    ):
        with pytest.raises((ValueError, NotImplementedError), match=r"net\.onnx: "):
            load(graph(tmp_path / "net.onnx", wrong, ["batch", "channels", 9, 8]))
    huge = [("ConstantOfShape", ["s"], "w", {}), ("Conv", ["x", "w"], "y", {})]
    with pytest.raises(ValueError, match="too large"):
        load(graph(tmp_path / "huge.onnx", huge, IMAGE, s=np.int64([99999, 4, 999, 999])))


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_give_a_network_or_one_line(seed, tmp_path):
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, rng=0), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.ScaledTanh(),
        nn.Flatten(), nn.Linear(12, 4, rng=1), nn.Softmax(),
    )  # fmt: skip
    export(network, tmp_path / "net.onnx", (1, 6, 6))
    whole, rng = (tmp_path / "net.onnx").read_bytes(), np.random.default_rng(seed)
    x, path, ran = np.zeros((1, 1, 6, 6), np.float32), tmp_path / "bad.onnx", 0
    for _ in range(150):
        content = bytearray(whole)
        for at in rng.integers(len(whole) - 9, size=rng.integers(1, 4)):
            kind, byte = rng.integers(3), int(rng.integers(256))
            if kind == 0:
                content[at] = byte
            elif kind == 1:
                content[at:at] = bytes([byte, byte])
            else:
                del content[at : at + 1 + byte % 8]
        path.write_bytes(content)
        refusal, loaded = "", None
        try:
            with np.errstate(all="ignore"):
                loaded = load(path)
                loaded(x)
                ran += 1
        except (TypeError, ValueError, NotImplementedError) as error:
            refusal = str(error)
        assert "\n" not in refusal
        assert loaded or refusal.startswith(f"{path}: ")
    assert ran
