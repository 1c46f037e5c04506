"""State dicts of other programs: prefixes, nesting, PyTorch's tensors, and what is none."""

import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

import gpuconv
from gpuconv import nn


def model(seed=0):
    return nn.Sequential(
        conv=nn.Conv2d(1, 2, 3, rng=seed), norm=nn.BatchNorm2d(2), block=nn.Residual(nn.ReLU())
    )


def state(seed=7):
    return {name: array.copy() for name, array in model(seed).state_dict().items()}


def assert_loaded(found):
    for name, array in state().items():
        np.testing.assert_array_equal(found.state_dict()[name], array)


PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "state_dict.", "module._orig_mod.",
            "model.module.", "_fsdp_wrapped_module."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrappers_prefix_is_left_out_and_named(prefix, tmp_path):
    wrapped = {prefix + name: array for name, array in state().items()}
    save_file(wrapped, tmp_path / "weights.safetensors")
    path = tmp_path / "weights.safetensors"
    for read in (
        lambda: wrapped,
        lambda: {"state_dict": wrapped, "epoch": 3},
        lambda: gpuconv.load_torch(wrapped),
        lambda: gpuconv.load_torch(path),
        lambda: gpuconv.checkpoint.read(path).weights,
    ):
        found = model()
        with pytest.warns(UserWarning, match=f"the prefix '{prefix}' is left out") as said:
            unmatched = found.load_state_dict(read())
        assert [len(str(each.message).splitlines()) for each in said] == [1]
        assert unmatched == ([], [])
        assert_loaded(found)


def test_compiled_parts_have_their_prefix_within_the_names():
    compiled = {name.replace("norm.", "norm._orig_mod."): array for name, array in state().items()}
    found = model()
    with pytest.warns(UserWarning, match="norm._orig_mod.weight is taken for norm.weight"):
        found.load_state_dict(compiled)
    assert_loaded(found)


def test_a_model_that_has_such_names_itself_keeps_them():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.model = inner

        def forward(self, x):
            return self.model(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Wrapped(model())
        found.load_state_dict({f"model.{name}": array for name, array in state().items()})
        assert_loaded(found.model)
    for given in (state(), {f"module.model.{name}": array for name, array in state().items()}):
        found = Wrapped(model())
        with pytest.warns(UserWarning, match="is taken for model.conv.weight"):
            found.load_state_dict(given)
        assert_loaded(found.model)


@pytest.mark.parametrize("name", ["state_dict", "model", "net", "model_state_dict"])
def test_a_state_within_a_training_checkpoint_is_found(name):
    for given in (
        {name: state(), "epoch": 3, "optimizer": {"lr": 0.1}},
        {name: {"state_dict": state()}},
    ):
        found = model()
        found.load_state_dict(given)
        assert_loaded(found)
        assert gpuconv.load_torch(given).keys() == state().keys()


def test_other_models_stay_refused_and_lax_loading_says_what_did_not_match():
    two = {f"model.{name}": array for name, array in state().items()}
    two |= {"teacher.fc.weight": np.zeros(3, np.float32)}
    found = model()
    with (
        pytest.warns(UserWarning, match="'model.'"),
        pytest.raises(ValueError, match=r"teacher\.fc\.weight is not in"),
    ):
        found.load_state_dict(two)
    del two["model.norm.bias"]
    with pytest.warns(UserWarning, match="'model.'"):
        unmatched = found.load_state_dict(two, strict=False)
    assert unmatched.missing_keys == ["norm.bias"]
    assert unmatched.unexpected_keys == ["teacher.fc.weight"]
    both = state() | {f"module.{name}": array for name, array in state(8).items()}
    found = model()
    assert found.load_state_dict(both, strict=False).unexpected_keys[0] == "module.conv.weight"
    assert_loaded(found)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "a dict of names and arrays is expected, got NoneType"),
        ("weights.pt", r"got str; gpuconv.load_torch\(path\) reads a file"),
        (nn.Linear(3, 2), "got Linear"),
        ([np.zeros(3)], "got list"),
        ({0: np.zeros(3)}, "names are strings, found 0"),
        ({"state_dict": {1: np.zeros(3)}}, "names are strings, found 1"),
    ],
)
def test_what_is_no_state_dict_is_refused_in_one_line(given, text):
    with pytest.raises(TypeError, match=f"load_state_dict: .*{text}"):
        model().load_state_dict(given)


@pytest.mark.parametrize("value", ["zeros", None, [[1.0], [2.0, 3.0]], object()])
def test_an_entry_that_is_no_array_changes_nothing(value):
    found, given = model(), state()
    given["norm.bias"] = value
    before = {name: array.copy() for name, array in found.state_dict().items()}
    with pytest.raises(ValueError, match=r"norm\.bias is no tensor but "):
        found.load_state_dict(given)
    for name, array in found.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.torch
def test_pytorchs_tensors_of_every_kind_are_taken():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rounded = {name: torch.tensor(array).bfloat16().float() for name, array in state().items()}
    for change in (
        lambda t: t,
        lambda t: t.bfloat16(),
        lambda t: t.double(),
        lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
    ):
        found = model()
        found.load_state_dict({name: change(tensor) for name, tensor in rounded.items()})
        for name, array in found.state_dict().items():
            np.testing.assert_array_equal(array, rounded[name].numpy())
