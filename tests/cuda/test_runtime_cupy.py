"""cuda/cupy.py with a stand-in for CuPy, whose kernels run in the simulator. No GPU is involved,
and nothing here says that one works.
"""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import simulated  # noqa: F401  skips where the simulator cannot run
import standin_cupy

from gpuconv import autograd, data, devices, models, nn, ops, optim, train
from gpuconv.arrays import device_of, to_device, to_numpy
from gpuconv.autograd import Tensor
from gpuconv.cli.main import main
from gpuconv.cuda import cupy as cupy_runtime
from gpuconv.cuda import layout, recording, source
from gpuconv.cuda.launch_config import LaunchConfig, config_elementwise
from gpuconv.cuda.runtime import runtime
from gpuconv.data import Dataset, Loader, Shift
from gpuconv.data.on_device import batches_for
from gpuconv.errors import DeviceError
from gpuconv.ops import (
    batch_norm2d_launch,
    conv2d_launch,
    pool2d_launch,
    softmax_launch,
)
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.ops.local_response_norm import config_local_response_norm
from gpuconv.optim.device import config_optimizer
from gpuconv.shapes import window
from gpuconv.strides import channels_last


@pytest.fixture(autouse=True)
def fresh():
    runtime.cache_clear()
    yield
    runtime.cache_clear()


@pytest.fixture
def standin(monkeypatch):
    standin_cupy.install(monkeypatch)
    return standin_cupy


@pytest.fixture(scope="module", autouse=True)
def executed():
    """The lines of cuda/cupy.py that this file's tests run, by number."""
    lines = set()

    def inside(frame, event, argument):
        lines.add(frame.f_lineno)
        return inside

    def entered(frame, event, argument):
        return inside if frame.f_code.co_filename == cupy_runtime.__file__ else None

    before = sys.gettrace()
    sys.settrace(before or entered)
    yield lines
    sys.settrace(before)


def ones(*shape):
    return np.ones(shape, np.float32)


def test_operations_give_cupy_arrays_for_cupy_arrays(standin):
    x = to_device(np.random.default_rng(0).standard_normal((2, 3, 6, 7)).astype(np.float32), "cuda")
    assert type(x) is standin.ndarray
    assert device_of(x) == "cuda"
    y = ops.conv2d(x, to_device(ones(4, 3, 3, 3), "cuda"))
    assert type(y) is standin.ndarray
    assert y.shape == (2, 4, 4, 5)
    assert channels_last(y)
    assert standin.launched[-1] == "conv2d_forward_small"
    on_cpu = ops.conv2d(to_numpy(x), ones(4, 3, 3, 3))
    np.testing.assert_allclose(to_numpy(y), on_cpu, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(y)
    with pytest.raises(TypeError, match="relu_backward: dy is on cuda, y on cpu"):
        ops.relu_backward(y, to_numpy(y))
    with pytest.raises(TypeError, match="relu_backward: dy is on cuda, y on sim"):
        ops.relu_backward(y, to_device(to_numpy(y), "sim"))


def test_other_libraries_arrays_on_the_gpu_become_cupys(standin):
    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    array = to_device(x, "sim")

    class Interface:
        def __init__(self):
            self.__cuda_array_interface__ = {"data": array}

    class Dlpack:
        def __dlpack__(self, **_):
            return array

        def __dlpack_device__(self):
            return 2, 0

    for kind in (Interface, Dlpack):
        y = ops.relu(kind())
        assert type(y) is standin.ndarray
        np.testing.assert_array_equal(to_numpy(y), np.maximum(x, 0))
        np.testing.assert_array_equal(to_numpy(kind()), x)
        assert to_device(kind(), "cuda")._array is array
    with runtime("cuda").on_stream(64, 0) as stream:
        assert (stream.ptr, stream.device_id) == (64, 0)


def test_a_training_step_has_the_bits_of_sim(standin):
    x, labels = np.random.default_rng(1).random((4, 1, 32, 32), np.float32), np.arange(4)
    states = []
    for device in ("cuda", "sim"):
        model, loss = models.lenet(seed=0).to(device), nn.CrossEntropyLoss()
        optimizer = optim.Adam(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(to_device(x, device)), to_device(labels, device)).backward()
            optimizer.step()
        states.append(model.state_dict())
    assert "adam" in standin.launched
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_step_in_16_bits_is_near_that_of_sim(standin, name):
    x, labels = np.random.default_rng(1).random((4, 1, 32, 32), np.float32), np.arange(4)
    states = []
    for device in ("cuda", "sim"):
        model, loss = models.lenet(seed=0).to(device), nn.CrossEntropyLoss()
        optimizer, scaler = optim.Adam(model.parameters()), optim.LossScaler(device)
        for _ in range(2):
            optimizer.zero_grad()
            with autograd.precision(name, scaler.factor):
                scores = model(to_device(x, device))
            loss(scores, to_device(labels, device)).backward()
            scaler.unscale(optimizer.params)
            optimizer.step(scaler)
        states.append(model.state_dict())
    assert {"narrow", "widen", "unscale", "turn_scale"} <= set(standin.launched)
    for key, array in states[0].items():  # the stand-in's card may have no tensor cores
        np.testing.assert_allclose(array, states[1][key], atol=5e-3)


def test_batches_have_the_loaders_bits(standin, monkeypatch):
    """Images that stay on the card; then, where it has no room, those that come by a stream."""
    images = np.random.default_rng(3).integers(0, 256, (9, 2, 5, 4), np.uint8)
    loader = Loader(Dataset(images, np.arange(9)), 4, seed=1, augment=Shift(1), mean=0.5)
    for room, streamed in ((4 * images.nbytes, False), (4 * images.nbytes - 1, True)):
        monkeypatch.setattr(standin.cuda.runtime, "memGetInfo", lambda room=room: (room, room))
        batches = batches_for(loader, "cuda")
        assert (batches.feed is not None) == streamed
        for number, (x, labels) in enumerate(loader.batches(1)):
            assert batches.prepare(1, number, 1) == (1, len(labels))
            if streamed:
                batches.feed()
            found = batches.load(len(labels), 0)
            assert type(found[0]) is standin.ndarray
            np.testing.assert_array_equal(to_numpy(found[0]), x)
            np.testing.assert_array_equal(to_numpy(found[1]), labels)


def test_branches_and_batch_norm_have_the_bits_of_sim(standin):
    x = np.random.default_rng(2).standard_normal((3, 3, 6, 7)).astype(np.float32)
    found = []
    for device in ("cuda", "sim"):
        layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, rng=1), nn.BatchNorm2d(4), nn.ReLU())
        model = nn.Sequential(
            nn.Conv2d(3, 4, 1, rng=0),
            nn.DenseBlock(
                4, nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, rng=2))
            ),
            nn.Concat(nn.Conv2d(8, 4, 1, rng=3), nn.Sequential(nn.Conv2d(8, 4, 3, 1, 1, rng=4))),
            nn.Conv2d(8, 4, 1, rng=5),
            nn.Residual(layer),
        ).to(device)
        given = Tensor(to_device(x, device), requires_grad=True)
        y = model(given)
        y.backward(y.data)
        gradients = [to_numpy(p.grad) for p in model.parameters()]
        found.append([y.numpy(), to_numpy(given.grad), *gradients])
    assert {"batch_norm2d_backward", "copy_channels", "add_channels"} <= set(standin.launched)
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_queue_that_failed_says_so_when_it_is_waited_for(standin):
    queue = runtime("cuda").queue(private=True)
    queue.synchronize()
    standin.failing.add("synchronize")
    with pytest.raises(standin_cupy.CUDARuntimeError, match="illegal memory access"):
        queue.synchronize()


def test_an_array_is_copied_to_another(standin):
    x = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    to = to_device(np.zeros_like(x), "cuda")
    runtime("cuda").assign(to, to_device(x, "cuda", weights=True))
    assert to_numpy(to).tobytes() == x.tobytes()


def trained(device, graph=True):
    """Losses and weights of three epochs, with dropout, an average and clipping; messages."""
    rng, said = np.random.default_rng(3), []
    listener = train.Callback()
    listener.on_message = said.append
    images = data.Dataset(rng.random((14, 2, 6, 5), np.float32), rng.integers(0, 3, 14))
    layers = nn.Flatten(), nn.Dropout(0.2, seed=4), nn.Linear(60, 3, rng=1)
    model = nn.Sequential(*layers).to(device)
    optimizer, average = optim.SGD(model.parameters(), 0.1, 0.9), optim.EMA(model, 0.5)
    trainer = train.Trainer(
        model, "hinge", optimizer, optim.CosineLR(0.1, 12), 0.1, average, [listener],
        progress=False, graph=graph,
    )  # fmt: skip
    losses = [r["loss"] for r in trainer.fit(data.Loader(images, 4, seed=1), epochs=3)]
    arrays = {**model.state_dict(), **average.state_dict()}
    return losses, {name: a.tobytes() for name, a in arrays.items()}, said


def test_a_graph_has_the_bits_of_ordinary_steps(standin, monkeypatch):
    expected = trained("sim", graph=False)[:2]
    assert trained("cuda")[:2] == expected
    one_by_one = standin.launched.count("sgd_momentum")
    assert one_by_one < 12  # of 12 steps
    standin.failing.add("capture")
    *found, said = trained("cuda")
    assert tuple(found) == expected
    assert said[1:] == [
        "no graph (cudaErrorStreamCaptureUnsupported: operation not permitted): the step's launches"
        " are repeated"
    ]
    assert standin.launched.count("sgd_momentum") == one_by_one + 12
    monkeypatch.setenv("GPUCONV_SYNCHRONIZE", "1")
    runtime.cache_clear()
    assert "GPUCONV_SYNCHRONIZE is set" in trained("cuda")[2][1]


def test_a_call_between_launches_is_repeated_with_them(standin):
    called = []
    launches = [(recording.Call("all_reduce", lambda: called.append(1)), [])]
    recorder = SimpleNamespace(launches=launches, keep=lambda items: items)
    standin.failing.add("capture")
    replay, note = runtime("cuda").replay_of(recorder)
    assert "Capture" in note
    before = len(called)
    replay(), replay()
    assert len(called) == before + 2


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("driver", "device cuda: no GPU answers: cudaErrorInsufficientDriver.*use device cpu"),
        ("devices", "device cuda: no GPU is visible .CUDA_VISIBLE_DEVICES.*use device cpu"),
    ],
)
def test_no_gpu(standin, what, text):
    standin.failing.add(what)
    model = models.lenet()
    with pytest.raises(DeviceError, match=text) as caught:
        model.to("cuda")
    assert "\n" not in str(caught.value)
    assert model.device == "cpu"  # nothing moved
    assert devices.resolve("auto") == "cpu"


def test_auto_takes_a_gpu_that_works(standin):
    assert devices.choose() == ("cuda", "a GPU works")
    assert models.lenet().to("auto").device == "cuda"


def test_no_cupy(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="device cuda: CuPy is not installed: pip install"):
        models.lenet().to("cuda")
    assert main(["demo", "relu", "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'gpuconv[cuda12]'" in said


def test_a_broken_cupy_is_not_called_missing(monkeypatch):
    def broken(name):
        raise ImportError("libnvrtc.so.12: cannot open shared object file")

    monkeypatch.setattr(cupy_runtime.importlib, "import_module", broken)
    assert "CuPy's import fails: libnvrtc.so.12" in cupy_runtime.problem()


def test_a_library_that_cupy_misses_is_named(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock")

    monkeypatch.setattr(cupy_runtime.importlib, "import_module", broken)
    assert "CuPy's import fails: No module named 'fastrlock'; reinst" in cupy_runtime.problem()


def test_a_layout_that_no_kernel_converts_is_copied(standin):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    there = to_device(x, "cuda").transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(to_numpy(ops.relu(there)), np.maximum(x.transpose(3, 0, 1, 2), 0))


def test_warmup_compiles_without_running(standin, capsys):
    on, config = runtime("cuda"), config_elementwise("relu.cu", "relu_forward", 8)
    on.compile(config.launches[0])
    assert not standin.launched
    standin.failing.add("compile")
    with pytest.raises(DeviceError, match=r"kernel relu_forward .* does not compile"):
        on.compile(config.launches[0])
    standin.failing.clear()
    assert main(["warmup", "--device", "cuda", "--batch", "2"]) == 0
    assert "device cuda: lenet at batch 2 is ready" in capsys.readouterr().out


def test_out_of_memory(standin):
    x = to_device(ones(2, 1, 4, 4), "cuda")
    standin.failing.add("memory")
    on = runtime("cuda")
    for act in (
        lambda: ops.relu(x),
        lambda: to_device(ones(3), "cuda"),
        lambda: on.copy(x),
        lambda: on.zeros((3,)),
    ):
        with pytest.raises(MemoryError, match=r"no memory left for .*shape .*Out of mem"):
            act()


def test_an_error_that_is_not_cupys_stays_what_it_is(standin):
    with pytest.raises((TypeError, ValueError)):
        runtime("cuda").empty("three")


def test_a_failed_launch_names_its_kernel(standin):
    x = to_device(ones(4), "cuda")
    standin.failing.add("launch")
    with pytest.raises(DeviceError, match=r"the GPU failed at kernel relu_forward \(relu.cu\)"):
        ops.relu(x)


def test_source_that_does_not_compile(standin):
    x = to_device(ones(4), "cuda")
    standin.failing.add("compile")
    with pytest.raises(DeviceError, match=r"kernel relu_forward .* does not compile: kernel"):
        ops.relu(x)


def test_an_error_that_surfaces_later(standin, monkeypatch):
    y = ops.relu(to_device(ones(4), "cuda"))
    standin.failing.add("synchronize")
    with pytest.raises(DeviceError, match=r"a copy to the host.*GPUCONV_SYNCHRONIZE=1 tells which"):
        to_numpy(y)
    with pytest.raises(DeviceError, match="a kernel started earlier"):
        runtime("cuda").synchronize()
    monkeypatch.setenv("GPUCONV_SYNCHRONIZE", "1")
    runtime.cache_clear()
    with pytest.raises(DeviceError, match="the GPU failed at kernel relu_forward") as caught:
        ops.relu(y)
    assert "GPUCONV_SYNCHRONIZE" not in str(caught.value)


def test_modules_are_compiled_once_and_with_cupys_options(standin, monkeypatch):
    made = []
    original = standin.RawModule

    def counted(**given):
        made.append(given)
        return original(**given)

    monkeypatch.setattr(standin, "RawModule", counted)
    x = to_device(ones(8), "cuda")
    for _ in range(3):
        x = ops.relu(x)
    (given,) = made
    assert given["options"] == ("-std=c++17", "-fmad=false", "-DVEC=4")
    assert given["backend"] == "nvrtc"
    assert '#include "' not in given["code"]
    # CuPy appends this one by itself, so ours and the simulator's are the same in the end
    assert {*cupy_runtime.OPTIONS, "-ftz=true"} == set(source.OPTIONS)


def test_more_shared_memory_than_usual_is_asked_for(standin):
    on = runtime("cuda")
    (launch,) = conv2d_launch.config_forward(
        Conv2dShape(1, 64, 8, 8, 64, 3, 3, 6, 6, groups=64), False, False
    ).launches
    from dataclasses import replace

    big = replace(launch, shared=60 << 10)
    arrays = {"x": on.zeros((1, 8, 8, 64)), "y": on.zeros((1, 6, 6, 64)), "w": on.zeros(576)}
    arrays["b"] = arrays["w"]
    on.run(LaunchConfig((big,)), **arrays)
    with pytest.raises(ValueError, match="65537 bytes of shared memory a block, this card has"):
        on.run(LaunchConfig((replace(launch, shared=65537),)), **arrays)


def configs():
    """One of each family."""
    conv = Conv2dShape.of((2, 4, 9, 9), (8, 4, 3, 3), window(3), 1)
    depthwise = Conv2dShape(1, 8, 8, 8, 8, 3, 3, 6, 6, groups=8)
    pooled = (2, 4, 9, 9), window(2)
    each = config_elementwise
    return [
        conv2d_launch.config_forward(conv, True, True),
        conv2d_launch.config_backward_data(conv, False),
        conv2d_launch.config_backward_weight(conv),
        conv2d_launch.config_backward_bias(98, 8),
        conv2d_launch.config_forward(depthwise, False, False),
        pool2d_launch.config_max_pool2d(*pooled),
        pool2d_launch.config_avg_pool2d(*pooled),
        layout.config_transpose(2, 8, 9),
        softmax_launch.config_loss("hinge_forward", 4, 10, "int64"),
        config_optimizer("adam", 3, 2),
        each("relu.cu", "relu_forward", 8),
        each("activations.cu", "tanh_forward", 8),
        each("elementwise.cu", "dropout", 8),
        layout.config_channels("add_channels", (1, 4, 2, 2), 8, 4, 4),
        batch_norm2d_launch.config_statistics((2, 4, 3, 3), 4, 4),
        pool2d_launch.config_adaptive_avg_pool2d((2, 4, 3, 3), (2, 2)),
        config_local_response_norm((2, 4, 3, 3), 5),
    ]


COMPILE = r"""
import json, sys
try:
    from cupy.cuda import compiler
    from cupy_backends.cuda.libs import nvrtc
    nvrtc.getVersion()
except Exception as error:
    print("missing", " ".join(str(error).split())[:200]); sys.exit()
for text, options, kernel in json.load(sys.stdin):
    program = compiler._NVRTCProgram(text, "", (), (), name_expressions=None, method="cubin")
    # what RawModule's own path adds: cupy/cuda/compiler.py
    added = ("-ftz=true", "--device-as-default-execution-space", "-arch=sm_80")
    code, _ = program.compile((*options, *added), None)
    assert code[:4] == b"\x7fELF" and kernel.encode() in code, kernel
print("built")
"""


def test_cupys_own_compiler_takes_the_sources_and_options():
    """Cubins by CuPy's compiler and NVRTC, which need no driver."""
    given = [
        (source.text(launch.file), [*cupy_runtime.OPTIONS, *launch.options], launch.kernel)
        for config in configs()
        for launch in config.launches
    ]
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    if done.stdout.startswith("missing"):
        pytest.skip(f"CuPy, or the NVRTC of its release, is not here: {done.stdout[8:].strip()}")
    assert done.stdout == "built\n", done.stderr[-2000:]


# ---- the stand-in against CuPy ------------------------------------------------------------------

REAL = r"""
import inspect, json, sys
try:
    import cupy
except ModuleNotFoundError as error:
    print(json.dumps({"missing": str(error)})); sys.exit()
def described(thing):
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return (getattr(thing, "__doc__", "") or "").split("\n")[0]
found = {}
for path in json.loads(sys.argv[1]):
    thing = cupy
    for name in path.split("."):
        thing = getattr(thing, name, None)
        if thing is None:
            break
    bases = [b.__name__ for b in getattr(thing, "__mro__", ())]
    found[path] = None if thing is None else {"text": described(thing), "bases": bases}
from cupy_backends.cuda.api import runtime
found["library"] = runtime.__file__
found["call"] = cupy.RawKernel.__call__.__doc__
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def theirs():
    """What CuPy itself says of each name of the stand-in."""
    command = [sys.executable, "-c", REAL, json.dumps(list(standin_names()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if "missing" in found:
        pytest.skip("CuPy is not installed, so the stand-in is compared with nothing")
    return found


def standin_names():
    """Every public name of the stand-in that CuPy has too, by path, with the thing itself."""
    found = {}
    for name in ("empty", "zeros", "asarray", "asnumpy", "from_dlpack", "get_default_memory_pool",
                 "RawModule", "RawKernel", "ndarray"):  # fmt: skip
        found[name] = getattr(standin_cupy, name)
    for name, thing in vars(standin_cupy.cuda).items():
        inner = vars(thing) if not callable(thing) else None
        found |= (
            {f"cuda.{name}.{k}": v for k, v in inner.items()} if inner else {f"cuda.{name}": thing}
        )
    for path, thing in list(found.items()):
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            members = {k: v for k, v in vars(thing).items() if not k.startswith("_")}
            found |= {f"{path}.{name}": member for name, member in members.items()}
    found["RawKernel.__call__"] = standin_cupy.RawKernel.__call__
    found["lib.stride_tricks.as_strided"] = standin_cupy.as_strided
    found["RawKernel.max_dynamic_shared_size_bytes"] = None
    found["ndarray.device"] = found["cuda.Device.id"] = None
    return found


# Whose constructors gpuconv never calls: CuPy makes them.
MADE_BY_CUPY = {
    "RawKernel",
    "ndarray",
    "cuda.MemoryPointer",
    "cuda.memory.MemoryPool",
    "cuda.Graph",
}


def parameters(text):
    """{name: (kind, default)} of a signature, Python's or the line that Cython writes."""
    inside = re.search(r"\((.*)\)", text)[1]
    found, kind = {}, "positional"
    for piece in re.split(r",\s*(?![^(\[]*[)\]])", inside):
        plain, _, default = re.sub(r":[^=]*", "", piece).partition("=")
        name = plain.split()[-1] if plain.split() else ""
        if name == "*":
            kind = "keyword"
        elif name.startswith("**"):
            found[name] = "rest", ""
        elif name.startswith("*"):
            found[name], kind = ("rest", ""), "keyword"
        elif name and name != "self":
            found[name] = kind, default.strip().replace('"', "'")
    return found


def test_the_parser_of_signatures():
    cython = "RawModule(str code=None, *, str path=None, tuple options=(), backend='nvrtc')"
    assert parameters(cython) == {
        "code": ("positional", "None"),
        "path": ("keyword", "None"),
        "options": ("keyword", "()"),
        "backend": ("keyword", "'nvrtc'"),
    }
    assert parameters("(shape: 'S', dtype: 'D' = <class 'float'>) -> 'NDArray[Any]'") == {
        "shape": ("positional", ""),
        "dtype": ("positional", "<class 'float'>"),
    }
    assert parameters("m(self, *axes)") == {"*axes": ("rest", "")}
    assert parameters("get() -> int") == {}


def test_the_stand_in_has_cupys_names_and_signatures(theirs):
    """Every parameter that the stand-in offers, of the same kind and with the same default; none
    that CuPy demands is missing.
    """
    compared = 0
    for path, thing in standin_names().items():
        assert theirs[path] is not None, f"CuPy has no {path}"
        if inspect.isclass(thing) and issubclass(thing, Exception):
            wanted = {base.__name__ for base in thing.__mro__}
            assert wanted <= set(theirs[path]["bases"]), path
        elif callable(thing) and path not in MADE_BY_CUPY:
            ours, real = (
                parameters(t) for t in (str(inspect.signature(thing)), theirs[path]["text"])
            )
            ours = {name.strip("_"): what for name, what in ours.items()}
            assert ours.items() <= real.items(), (path, ours, real)
            demanded = {n for n, (kind, default) in real.items() if kind != "rest" and not default}
            assert demanded <= set(ours), (path, demanded)
            compared += 1
    assert compared >= 14
    assert "shared_mem=0" in theirs["call"]  # which its signature hides in **kwargs


def test_the_card_s_properties_have_cupys_names(theirs):
    """They come from a driver, so the names are looked for in CuPy's own library."""
    library = Path(theirs["library"]).read_bytes()
    for name in standin_cupy.cuda.runtime.getDeviceProperties(0):
        assert name.encode() in library, name


def test_what_the_runtime_takes_from_cupy_is_compared():
    """Each dotted name that cuda/cupy.py follows from `cupy` is among the stand-in's."""
    tree = ast.parse(Path(cupy_runtime.__file__).read_text("utf-8"))
    used = {path for node in ast.walk(tree) if (path := _from_cupy(node))}
    assert len(used) >= 12, used
    known = set(standin_names())
    prefixes = {".".join(path.split(".")[:n]) for path in known for n in (1, 2)}
    assert used <= known | prefixes, used - known - prefixes


def _from_cupy(node):
    """ "cuda.runtime" for cupy.cuda.runtime, self.cupy.cuda.runtime and cuda.runtime."""
    path = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    start = node.id if isinstance(node, ast.Name) else ""
    if start == "self" and path[:1] == ["cupy"]:
        return ".".join(path[1:])
    if start == "cupy":
        return ".".join(path)
    return ".".join(["cuda", *path]) if start == "cuda" and path else ""


def test_every_line_of_the_runtime_has_run(executed, request):
    """By the tests above, none of which needs a GPU."""
    selected = {i.originalname for i in request.session.items if i.module is request.module}
    if selected != {name for name in vars(request.module) if name.startswith("test_")}:
        pytest.skip("not all tests of this file were selected")
    if not executed:
        pytest.skip("another tool traces lines")
    todo = [compile(Path(cupy_runtime.__file__).read_text("utf-8"), "cupy.py", "exec")]
    wanted = set()
    for code in todo:  # which grows
        todo += [inner for inner in code.co_consts if inspect.iscode(inner)]
        if code.co_flags & inspect.CO_OPTIMIZED:  # a function's, not a class's or the module's
            wanted |= {line for *_, line in code.co_lines() if line} - {code.co_firstlineno}
    assert not wanted - executed, sorted(wanted - executed)
