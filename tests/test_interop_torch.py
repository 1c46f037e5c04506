"""Weights from PyTorch: files, mappings, old names, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import gpuconv
from gpuconv import models


def state():
    network = models.resnet18(num_classes=3)
    return {name: np.array(value) for name, value in network.state_dict().items()}


def test_a_safetensors_file_loads_into_the_model(tmp_path):
    expected = state()
    save_file(expected, tmp_path / "resnet18.safetensors")
    found = gpuconv.load_torch(tmp_path / "resnet18.safetensors")
    assert found.keys() == expected.keys()
    network = models.resnet18(num_classes=3, seed=5)
    network.load_state_dict(found)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.torch
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_torch_file_loads_into_the_model(tmp_path, wrapped):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    expected = state()
    tensors = {f"module.{name}": torch.tensor(value) for name, value in expected.items()}
    torch.save({"state_dict": tensors, "epoch": 3} if wrapped else tensors, tmp_path / "weights.pt")
    found = gpuconv.load_torch(tmp_path / "weights.pt")
    models.resnet18(num_classes=3, seed=None).load_state_dict(found)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


@pytest.mark.torch
def test_half_precision_becomes_float32(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": x.bfloat16(), "b": x.half(), "c": x.double(), "d": x.t(), "n": torch.tensor(4)}
    for found in (gpuconv.load_torch(tensors),):
        assert [found[name].dtype.name for name in "abcdn"] == [
            "float32", "float32", "float64", "float32", "int64",
        ]  # fmt: skip
        np.testing.assert_array_equal(found["a"], x)
        np.testing.assert_array_equal(found["d"], x.t())
        assert found["d"].flags.c_contiguous


@pytest.mark.torch
def test_half_precision_files_are_read(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import save_file as save_tensors

    values = torch.tensor([[1.0, -2.5, 3e38], [1e-40, float("inf"), 0.1]])
    tensors = {"brain": values.bfloat16(), "half": values.half(), "full": values, "n": values[:0]}
    tensors["none"] = tensors["brain"][:0].clone()
    path = tmp_path / "half.safetensors"
    save_tensors(tensors, path)
    for found in (gpuconv.load_torch(path), gpuconv.checkpoint.read(path).weights):
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(found[name], tensor.float().numpy())
        assert found["brain"].dtype == np.float32
    assert gpuconv.load_torch(path)["half"].dtype == np.float32
    model = gpuconv.nn.Linear(3, 2, bias=False)
    model.load_state_dict({"weight": gpuconv.checkpoint.read(path).weights["brain"]})
    np.testing.assert_array_equal(model.weight.data, tensors["brain"].float().numpy())
    save_tensors({"ok": values, "tiny": values.to(torch.float8_e4m3fn)}, path)
    for read in (gpuconv.load_torch, gpuconv.checkpoint.read):
        with pytest.raises(ValueError, match="'tiny' is of type F8_E4M3, which is not supported"):
            read(path)


@pytest.mark.torch
def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path, trace = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"w": Evil(trace)}, path)
    with pytest.raises(ValueError, match="cannot read it as weights alone"):
        gpuconv.load_torch(path)
    assert not trace.exists()


class Evil:
    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


def test_without_pytorch_a_torch_file_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"anything")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"import gpuconv\ntry: gpuconv.load_torch({str(path)!r})\n"
        "except ImportError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "convert the file to .safetensors" in found.stdout


def test_old_names_become_the_new_ones():
    old = {
        "features.denseblock1.denselayer2.norm.1.weight": np.ones(3, np.float32),
        "features.denseblock1.denselayer2.conv.2.weight": np.ones(3, np.float16),
        "features.norm0.running_var": np.ones(3, np.float32),
    }
    found = gpuconv.load_torch(old)
    assert list(found) == [
        "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.conv2.weight",
        "features.norm0.running_var",
        "features.norm0.num_batches_tracked",
    ]
    assert found["features.denseblock1.denselayer2.conv2.weight"].dtype == np.float32


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        gpuconv.load_torch(tmp_path / "none.pt")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(ValueError, match="not a safetensors file"):
        gpuconv.load_torch(damaged)
    with pytest.raises(ValueError, match="is no tensor but str"):
        gpuconv.load_torch({"w": "weights"})
    with pytest.raises(ValueError, match="expected floats or integers"):
        gpuconv.load_torch({"w": np.ones(2, complex)})
