"""Checkpoints: what is written comes back, damage is told in one line, old files survive."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpuconv
from gpuconv import checkpoint, metadata, models
from gpuconv.checkpoint import Checkpoint, read
from gpuconv.files import remove_leftovers, write_atomically
from gpuconv.nn import Module, Parameter
from gpuconv.train import state


class Affine(Module):
    def __init__(self, n=3, m=4):
        super().__init__()
        self.weight = Parameter(np.arange(n * m, dtype=np.float32).reshape(n, m))
        self.bias = Parameter(np.zeros(m, np.float32))


def example():
    rng = np.random.default_rng(0)
    weights = {
        "conv.weight": rng.standard_normal((4, 3, 5, 5), dtype=np.float32),
        "scale": np.array(3.5),
        "count": np.array([1, 2, 3]),
        "empty": np.zeros((0, 4), np.float32),
        "half": rng.random(5).astype(np.float16),
        "mask": np.array([True, False, True]),
    }
    meta = {"epoch": 3, "best": 0.987654321012345, "generators": {"drop": [2**100, 5]}}
    return Checkpoint(weights, meta, {"exp_avg.0": rng.random((4, 3))})


def equal(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
        for k in a
    )


def test_weights_saved_in_16_bits_are_rounded_and_take_half_the_space(tmp_path):
    model = models.lenet(seed=3)
    weights = {name: array.copy() for name, array in model.state_dict().items()}
    gpuconv.save(model, tmp_path / "full.safetensors")
    for precision, dtype, step in (("bf16", np.float32, 2.0**-8), ("fp16", np.float16, 2.0**-11)):
        path = tmp_path / f"{precision}.safetensors"
        gpuconv.save(model, path, precision, classes=["a"])
        found = read(path)
        assert found.metadata["classes"] == ["a"]
        full = (tmp_path / "full.safetensors").stat().st_size
        assert path.stat().st_size < 0.52 * full
        loaded = gpuconv.load(path).state_dict()
        for name, array in weights.items():
            assert found.weights[name].dtype == dtype
            assert loaded[name].dtype == np.float32
            assert (np.abs(loaded[name] - array) <= np.abs(array) * step + 2.0**-25).all()
            assert (loaded[name] != array).any()
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or altered"):
            read(path)
    with pytest.raises(ValueError, match="x is float32 with values that float16 cannot hold"):
        gpuconv.save({"x": np.float32([1e6])}, tmp_path / "big.safetensors", "fp16")
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        gpuconv.save({"x": np.float32([1])}, tmp_path / "big.safetensors", "half")


@pytest.mark.torch
def test_pytorch_reads_weights_saved_in_16_bits(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    a = np.random.default_rng(4).normal(size=(7, 9)).astype(np.float32)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        gpuconv.save({"a": a, "n": np.arange(3)}, tmp_path / "x.safetensors", precision)
        found = load_file(tmp_path / "x.safetensors")
        assert found["n"].dtype == torch.int64
        assert torch.equal(found["a"], torch.from_numpy(a).to(dtype))


def one_line(info):
    text = str(info.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, example())
    back = checkpoint.read(path)
    assert equal(back.weights, example().weights)
    assert equal(back.optimizer, example().optimizer)
    assert back.metadata == example().metadata
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    checkpoint.write(tmp_path / "a", example())
    checkpoint.write(tmp_path / "b", example())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_safetensors_library_reads_our_files_and_we_its(tmp_path):
    weights = example().weights
    checkpoint.save(weights, tmp_path / "ours.safetensors")
    assert equal(load_file(tmp_path / "ours.safetensors"), weights)
    save_file(weights, tmp_path / "theirs.safetensors")
    theirs = checkpoint.read(tmp_path / "theirs.safetensors")
    assert equal(theirs.weights, weights)
    assert theirs.metadata == {}
    with pytest.raises(ValueError, match="names no model of gpuconv") as info:
        checkpoint.load(tmp_path / "theirs.safetensors")
    assert "load_state_dict" in one_line(info)


def test_layouts_that_safetensors_would_corrupt(tmp_path):
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = {"t": a.T, "r": a[::-1], "s": a[:, ::2], "b": np.broadcast_to(a[0], (5, 3, 4))}
    views["f"] = np.asfortranarray(a)
    checkpoint.save(views, tmp_path / "x.safetensors")
    back = checkpoint.read(tmp_path / "x.safetensors").weights
    for name, view in views.items():
        assert np.array_equal(back[name], view)


def test_a_model_of_the_zoo_is_rebuilt(tmp_path):
    models = pytest.importorskip("gpuconv.models")
    model = models.lenet(num_classes=7, seed=5)
    checkpoint.save(model, tmp_path / "m.safetensors", classes=list("abcdefg"))
    again = checkpoint.load(tmp_path / "m.safetensors")
    assert equal(again.state_dict(), model.state_dict())
    assert not again.training
    x = np.random.default_rng(0).random((2, 1, 32, 32), dtype=np.float32)
    assert np.array_equal(again(x).numpy(), model.eval()(x).numpy())
    assert checkpoint.read(tmp_path / "m.safetensors").metadata["classes"] == list("abcdefg")


def test_a_model_is_compared_before_memory_is_taken(monkeypatch):
    from gpuconv import models
    from gpuconv.nn import init

    weights = models.lenet().state_dict()
    monkeypatch.setattr(init, "initialize", None)  # no weights are drawn that others replace
    built = Checkpoint(weights, {"model": {"name": "lenet", "arguments": {"seed": 3}}}).build()
    for name, array in built.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])
        assert not np.shares_memory(array, weights[name])
    spec = {"name": "lenet", "arguments": {"num_classes": 2 * 10**9}}
    with pytest.raises(ValueError, match=r"this model's is \(2000000000, 100\)"):
        Checkpoint(weights, {"model": spec}).build()


def test_a_model_of_your_own(tmp_path):
    checkpoint.save(Affine(), tmp_path / "m.safetensors")
    model = Affine()
    model.weight.data[...] = 0
    kept = model.weight.data
    checkpoint.read(tmp_path / "m.safetensors").load_into(model)
    assert model.weight.data is kept
    assert equal(model.state_dict(), Affine().state_dict())
    with pytest.raises(ValueError, match="another architecture") as info:
        checkpoint.read(tmp_path / "m.safetensors").load_into(Affine(n=5))
    text = one_line(info)
    assert "m.safetensors: " in text
    assert "weight has shape (3, 4), this model's is (5, 4)" in text


def test_no_flipped_byte_passes(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, example())
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, 40), *rng.integers(0, header, 200), *rng.integers(header, len(whole), 200)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        told = ""
        try:
            back = checkpoint.read(path)
        except ValueError as error:
            told = str(error)
        assert "\n" not in told
        assert not told or told.startswith(str(path))
        if not told:  # what still passes means the same: "e" for "E" in \u00e9, tab for space
            assert equal(back.weights, example().weights)
            assert equal(back.optimizer, example().optimizer)
            assert back.metadata == example().metadata


def test_truncated_at_any_length(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, example())
    whole = path.read_bytes()
    lengths = [*range(0, 24), *range(24, len(whole), 97), len(whole) - 1]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"truncated|damaged") as info:
            checkpoint.read(path)
        one_line(info)
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 a zip file, such as torch.save writes" * 9,
        b"\x80\x04\x95 a pickle " * 9,
        b"\x89PNG\r\n\x1a\n" * 9,
        b"a text file that somebody renamed",
        bytes(100),
    ],
)
def test_other_files(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a safetensors file") as info:
        checkpoint.read(path)
    assert one_line(info).startswith(str(path))


def test_tampering_is_detected(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, example())
    whole = path.read_bytes()
    changed = whole.replace(rb"\"epoch\": 3", rb"\"epoch\": 4")
    assert changed != whole
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="do not match its checksum"):
        checkpoint.read(path)


def rewrite_header(path, **changes):
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    header["__metadata__"].update(changes)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[end:])


def test_a_newer_format_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, example())
    rewrite_header(path, gpuconv_format="2")
    with pytest.raises(ValueError, match=r"newer gpuconv \(format 2, this one reads up to 1\)"):
        checkpoint.read(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        checkpoint.load(tmp_path / "none.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"none/a: cannot write: there is no folder"
    ) as info:
        checkpoint.save({}, tmp_path / "none" / "a")
    assert info.value.errno == errno.ENOENT
    with pytest.raises(IsADirectoryError, match="cannot write"):
        checkpoint.save({}, tmp_path)
    with pytest.raises(ValueError, match="cannot read: Is a directory"):
        checkpoint.read(tmp_path)


def test_what_the_format_cannot_hold(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save({"a": np.ones(3)}, path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="cannot hold c, which is <c16"):
        checkpoint.save({"c": np.ones(3, complex)}, path)
    with pytest.raises(TypeError, match="metadata must be what JSON can hold"):
        checkpoint.save({"a": np.ones(3)}, path, model=object())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_reserved_names_are_refused_and_foreign_files_keep_all(tmp_path):
    path = tmp_path / "a.safetensors"
    for name in ("optimizer/x", "__metadata__"):
        with pytest.raises(ValueError, match="cannot be called"):
            checkpoint.save({name: np.ones(3)}, path)
    assert os.listdir(tmp_path) == []
    theirs = {"optimizer/x": np.ones(3), "y": np.zeros(2)}
    save_file(theirs, path)
    assert equal(checkpoint.read(path).weights, theirs)


# ---- metadata that are not as they should be -----------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with everything that a checkpoint can keep."""
    from gpuconv import train

    config = train.run_config(
        limit=200, epochs=1, optimizer="adam", ema=0.9, validation=0.2, augment="shift+flip"
    )
    run = train.prepare(config)
    run.trainer.callbacks.clear()
    run.trainer.out = tmp_path_factory.mktemp("run")
    run.fit()
    return run.trainer.out


def use(path):
    """All that reads a checkpoint's metadata, but for training."""
    from gpuconv import data, train

    found = checkpoint.read(path)
    model = found.build()
    data.Preprocessing.from_metadata(found.metadata, model.input_shape)
    train.run_config(stored=train.stored_config(path.parent))
    return found


def places(value, path=()):
    """Every place within nested metadata."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], (dict, list)) and value[key]:
            yield from places(value[key], (*path, key))


def changed(metadata, path, value):
    """A copy with one place changed, or without it where value is `del`."""
    metadata = json.loads(json.dumps(metadata))
    inner = metadata
    for key in path[:-1]:
        inner = inner[key]
    if value == "del":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return metadata


@pytest.mark.slow  # tests/fuzz has a quick one
def test_metadata_of_any_kind_are_taken_or_refused_in_one_line(trained, tmp_path):
    from gpuconv import train

    path = tmp_path / "last.safetensors"
    found = checkpoint.read(trained / "last.safetensors")
    run = train.prepare(train.stored_config(trained))
    rng = random.Random(1)
    values = ["del", None, -1, 2**70, 0.5, math.inf, "x", "", [], [[1]], {}, {"a": 1}, True]
    messages = []
    for place in places(found.metadata):
        for value in rng.sample(values, 3):
            meta = changed(found.metadata, place, value)
            checkpoint.write(path, Checkpoint(found.weights, meta, found.optimizer))
            try:
                use(path)
                state.restore(checkpoint.read(path), run.trainer, found.metadata["recipe"])
            except ValueError as error:
                messages.append(str(error))
    assert len(messages) > 300
    assert all("\n" not in text and len(text) < 500 for text in messages)
    use(trained / "last.safetensors")


def test_deep_metadata_and_newer_fields(trained, tmp_path):
    path = tmp_path / "last.safetensors"
    found = checkpoint.read(trained / "last.safetensors")
    meta = changed(found.metadata, ("position", "tempo"), 1)
    checkpoint.write(path, Checkpoint(found.weights, meta, found.optimizer))
    with pytest.raises(ValueError, match=r"position.tempo.*newer gpuconv; upgrade"):
        checkpoint.read(path)
    checkpoint.save({"a": np.ones(1)}, path, classes={"a": 1})
    with pytest.raises(ValueError, match="say classes is dict, expected null or a list of a str"):
        checkpoint.read(path)
    deep = "[" * 100_000 + "]" * 100_000, '{"a": ' * 50_000 + "1" + "}" * 50_000
    huge = '{"input": {"mean": 1%s}}' % ("0" * 400), '{"seed": 9223372036854775808}'
    for text in (*deep, *huge, "5", "{"):
        with pytest.raises(ValueError, match="its metadata") as info:
            metadata.parse(text)
        one_line(info)


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, example())
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        monkeypatch.setattr(checkpoint, "_bytes", full)
    else:
        monkeypatch.setattr(os, failing, full)
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "_digest", lambda *_: "")
        with pytest.raises(OSError, match="cannot write: No space left on device") as info:
            checkpoint.write(path, Checkpoint({"b": np.ones(9)}))
    assert info.value.errno == errno.ENOSPC
    assert one_line(info).startswith(str(path))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_really_full_disk(tmp_path):
    """A file system of 64 KiB, where this process may mount one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        path = tmp_path / "a.safetensors"
        checkpoint.save({"a": np.ones(1000)}, path)
        before = path.read_bytes()
        with pytest.raises(OSError, match="No space left on device"):
            checkpoint.save({"a": np.ones(20000)}, path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["a.safetensors"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write anywhere (root)")
        with pytest.raises(PermissionError, match="cannot write: Permission denied"):
            checkpoint.save({"a": np.ones(3)}, tmp_path / "a")
    finally:
        tmp_path.chmod(0o755)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cannot write: Not a directory"):
        checkpoint.save({}, tmp_path / "file" / "a.safetensors")


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    """Whose number a process has says nothing: containers share folders, not numbers."""
    number = os.getpid()
    dead = tmp_path / ".last.safetensors.0123456789abcdef.tmp"
    old, new = (tmp_path / f".last.safetensors.{number}-{i}.tmp" for i in range(2))
    other = tmp_path / ".notes.tmp"
    for path in (dead, old, new, other):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    names = []

    def content(file):
        remove_leftovers(tmp_path)  # another run begins while we write
        names.extend(sorted(os.listdir(tmp_path)))
        file.write(b"whole")

    write_atomically(tmp_path / "a", content)
    assert len(names) == 3
    assert {new.name, other.name} < set(names)
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert sorted(os.listdir(tmp_path)) == sorted([new.name, other.name, "a"])


def test_a_file_of_the_same_name_does_not_block(tmp_path, monkeypatch):
    drawn = iter(["0" * 16, "0" * 16, "1" * 16])
    monkeypatch.setattr(secrets, "token_hex", lambda n: next(drawn))
    (tmp_path / f".a.{'0' * 16}.tmp").write_bytes(b"theirs")
    write_atomically(tmp_path / "a", b"ours")
    assert (tmp_path / "a").read_bytes() == b"ours"
    assert (tmp_path / f".a.{'0' * 16}.tmp").read_bytes() == b"theirs"


def test_the_umask_holds(tmp_path):
    before = os.umask(0o077)
    try:
        checkpoint.save({"a": np.ones(3)}, tmp_path / "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


WRITER = """
import sys, numpy as np
from gpuconv.checkpoint import Checkpoint, write
k = 0
while True:
    k += 1
    write(sys.argv[1], Checkpoint({"a": np.full(200_000, k, np.float32)}, {"k": k}))
"""


def test_kill_9_leaves_a_whole_file(tmp_path):
    path = Path(tmp_path / "a.safetensors")
    rng = np.random.default_rng(2)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        deadline = time.monotonic() + 60
        mark = path.stat().st_mtime_ns if path.exists() else 0
        while (not path.exists() or path.stat().st_mtime_ns == mark) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(float(rng.random()) * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        back = checkpoint.read(path)
        assert np.all(back.weights["a"] == back.metadata["k"])
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (np.full(4, 1 + 1j), "bias is complex128, expected float32"),
        (np.array([0, 1e300, 0, 0]), "bias is float64 with values that float32 cannot hold"),
        (np.array(["a"] * 4), "bias is <U1, expected float32"),
    ],
)
def test_values_that_do_not_fit_change_nothing(bad, text):
    model = Affine()
    with pytest.raises(ValueError, match=text):
        model.load_state_dict({"weight": np.ones((3, 4)), "bias": bad})
    assert equal(model.state_dict(), Affine().state_dict())
    model.load_state_dict({"weight": np.ones((3, 4), int), "bias": np.array([1, np.inf, 0.1, 2])})
    np.testing.assert_array_equal(model.bias.data, np.array([1, np.inf, 0.1, 2], np.float32))
