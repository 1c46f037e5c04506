"""Networks on device sim: every operation of a training step in the CUDA kernels."""

import json
import time

import numpy as np
import pytest
from simulated import sim

import gpuconv
from gpuconv import data, models, nn, ops, optim
from gpuconv.arrays import device_of, to_device, to_numpy
from gpuconv.cli.main import main
from gpuconv.cuda.runtime import runtime
from gpuconv.cuda.sim import SimRuntime
from gpuconv.ops.op import Op, op
from gpuconv.strides import channels_last

BATCH = 32
# What one step of LeNet with ReLU, max-pool, cross-entropy and momentum consists of.
KERNELS = {
    "conv2d_forward_small", "conv2d_backward_small", "linear_chain_forward",
    "linear_small_backward", "cross_entropy_and_gradient", "sgd_momentum",
}  # fmt: skip


def batches(steps):
    images = data.load("mnist")
    for i in range(steps):
        chosen = list(range(i * BATCH, (i + 1) * BATCH))
        yield images.batch(chosen, size=(32, 32)), images.labels[chosen]


def train(steps, device, dtype=np.float32):
    """Losses, final state and processor seconds of the steps, the images' preparation apart."""
    model, loss = models.lenet(seed=0).to(device, dtype), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, seconds = [], 0.0
    for x, labels in batches(steps):
        started = time.process_time()
        optimizer.zero_grad()
        value = loss(model(to_device(x.astype(dtype), device)), to_device(labels, device))
        value.backward()
        losses.append(value.item())
        optimizer.step()
        seconds += time.process_time() - started
    return losses, model.state_dict(), seconds


@pytest.mark.parametrize("steps", [11, pytest.param(20, marks=pytest.mark.slow)])
def test_lenet_trains_on_mnist_as_the_reference_and_repeats_its_bits(steps, record_property):
    on = runtime("sim")
    on.ran.clear()
    losses, state, seconds = train(steps, "sim")
    record_property("seconds", seconds)
    assert seconds < 60
    assert set(on.ran) == KERNELS
    # log(sum exp) of 10 scores, sums of at most 400 terms each, five layers deep; the weights of
    # the two runs drift apart by roundings alone. (Another order of sums in a kernel may turn a
    # near tie of a pooling window the other way: then a loss differs by about 1e-4, once.)
    expected, _, _ = train(steps, "reference", np.float64)
    np.testing.assert_allclose(losses, expected, rtol=3e-6)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    again, same, _ = train(steps, "sim")
    assert losses == again
    assert all(state[name].tobytes() == same[name].tobytes() for name in state)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, lr=0.1),
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, dampening=0.5),
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1),
        lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: optim.SGD(
            [{"params": p[:2], "lr": 0.01}, {"params": p[2:], "momentum": 0.5}], lr=0.1
        ),
        lambda p: optim.Adam([{"params": p[:2], "betas": (0.5, 0.9)}, {"params": p[2:]}], lr=0.1),
        lambda p: optim.Adam(p, lr=0.01, betas=(0.5, 0.5), amsgrad=True),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw", "sgd groups", "adam groups", "amsgrad"],
)
def test_optimisers_give_the_cpus_bits(make):
    """Over parameters of both layouts, with one that has no gradient and one younger; with
    gradients whose squares overflow.
    """
    rng = np.random.default_rng(1)
    shapes = [(6, 3, 5, 2), (7, 5), (11,), (3,), (2, 2)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    updated = {}
    for device in ("cpu", "sim"):
        rng = np.random.default_rng(2)
        params = [nn.Parameter(to_device(a.copy(), device, weights=True)) for a in arrays]
        optimizer = make(params)
        for step in range(3):
            optimizer.zero_grad()
            for i, p in enumerate(params):
                grad = rng.standard_normal(p.shape).astype(np.float32)
                if step == 1:
                    grad.flat[0] = 2e19 if i % 2 else -3e38
                if i != 3 and (i != 4 or step):
                    p.grad = to_device(grad, device)  # NCHW, whatever the parameter's layout
            optimizer.step()
        kept = optimizer.state_dict()
        updated[device] = [to_numpy(p.data) for p in params], kept["arrays"], kept["steps"]
    (ours, slots, steps), (theirs, others, ages) = updated["sim"], updated["cpu"]
    assert steps == ages
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert slots.keys() == others.keys()
    for name in slots:
        assert isinstance(slots[name], np.ndarray)
        np.testing.assert_array_equal(slots[name], others[name])


def test_an_optimisers_state_moves_between_devices():
    p = nn.Parameter(to_device(np.ones((2, 3, 2, 2), np.float32), "sim", weights=True))
    first = optim.Adam([p])
    p.grad = to_device(np.full((2, 3, 2, 2), 0.5, np.float32), "sim")
    first.step()
    q = nn.Parameter(to_numpy(p.data))
    second = optim.Adam([q])
    second.load_state_dict(first.state_dict())
    third = optim.Adam([p])
    third.load_state_dict(second.state_dict())
    q.grad = np.ones((2, 3, 2, 2), np.float32)
    p.grad = to_device(q.grad, "sim")
    second.step()
    third.step()
    np.testing.assert_array_equal(to_numpy(p.data), q.data)


def test_wrong_gradients_are_refused_by_name():
    p = nn.Parameter(to_device(np.ones(8, np.float32), "sim"))
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9)
    for grad, error, text in (
        (np.ones(8, np.float32), TypeError, "SGD: parameter 0 is on sim, its grad on cpu"),
        (to_device(np.ones(4, np.float32), "sim"), ValueError, "has shape .8,., its grad .4,."),
        (to_device(np.ones(8), "sim"), TypeError, "parameter 0's grad must be float32"),
    ):
        p.grad = grad
        with pytest.raises(error, match=text):
            optimizer.step()
    p.grad = p.data
    with pytest.raises(ValueError, match="two of the optimiser's arrays overlap"):
        optimizer.step()


def test_models_move_there_and_back():
    model = models.lenet(seed=3)
    before = {name: a.copy() for name, a in model.state_dict().items()}
    model.to("sim")
    assert {device_of(p.data) for p in model.parameters()} == {"sim"}
    assert channels_last(model["conv2"].weight.data)
    for name, a in model.state_dict().items():
        assert isinstance(a, np.ndarray)
        np.testing.assert_array_equal(a, before[name])
    model.load_state_dict({name: a + 1 for name, a in before.items()})
    model.to("cpu")
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, before[name] + 1)


def test_gradients_of_two_passes_add_up():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Tanh(), nn.Flatten()).to("sim")
    x = to_device(np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32), "sim")
    found = []
    for _ in range(2):
        y = model(x)
        y.backward(y.data)
        found.append(to_numpy(model[0].weight.grad).copy())
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-6)


def test_the_trainer_and_its_checkpoints(tmp_path):
    images = data.load("mnist")
    batches = [(images.batch([i, i + 1], size=(32, 32)), images.labels[i : i + 2]) for i in (0, 2)]
    results = {}
    for device in ("cpu", "sim"):
        model = models.lenet(seed=0).to(device)
        optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        out = tmp_path / device
        trainer = gpuconv.Trainer(
            model, "cross_entropy", optimizer, out=out, progress=False, clip_norm=1.0
        )
        (record,) = trainer.fit(batches, batches, epochs=1)
        shares = trainer.predict(batches[0][0])
        results[device] = [record["loss"], record["validation_loss"], shares]
        loaded = gpuconv.checkpoint.read(out / "last.safetensors")
        for name, a in model.state_dict().items():
            np.testing.assert_array_equal(loaded.weights[name], a)
    for ours, theirs in zip(results["sim"], results["cpu"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_broken_run_names_the_first_broken_layer():
    model = models.lenet(seed=0).to("sim")
    model["conv2"].bias.data = to_device(np.full(16, np.nan, np.float32), "sim")
    trainer = gpuconv.Trainer(model, "cross_entropy", optim.SGD(model.parameters()), progress=False)
    batch = np.ones((2, 1, 32, 32), np.float32), np.array([0, 1])
    with pytest.raises(FloatingPointError, match=r"output of layer conv2 .*its bias is not finite"):
        trainer.fit([batch])


def test_train_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--limit", "64", "--batch", "32", "--epochs", "1", "--validation", "0"]
    SimRuntime.start, start = _counting(SimRuntime.start, calls := []), SimRuntime.start
    try:
        assert main(["train", "--device", "sim", "--out", str(out), *options]) == 0
    finally:
        SimRuntime.start = start
    assert "device sim" in capsys.readouterr().out
    assert {"conv2d_forward_small", "cross_entropy_and_gradient"} <= set(calls)
    lines = (out / "history.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(lines[-1])["loss"])
    assert main(["evaluate", str(out / "last.safetensors"), "--limit", "8", "--device", "sim"]) == 0


def _counting(start, calls):
    def counted(self, launch, arguments):
        calls.append(launch.kernel)
        start(self, launch, arguments)

    return counted


def test_other_commands_run_on_sim(capsys):
    assert main(["demo", "conv", "--device", "sim"]) == 0
    on_sim = capsys.readouterr().out
    assert main(["demo", "conv", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == on_sim  # whole numbers: exact
    assert main(["steps", "--device", "sim"]) == 0
    assert "Step 5" in capsys.readouterr().out


def test_sim_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sim, "available", lambda: "the simulator needs NVRTC: pip install ...")
    runtime.cache_clear()
    try:
        with pytest.raises(gpuconv.errors.DeviceError, match="device sim: the simulator needs"):
            models.lenet().to("sim")
    finally:
        runtime.cache_clear()


def test_warmup_compiles_what_training_needs(capsys):
    assert main(["warmup", "--device", "sim", "--batch", "2"]) == 0
    assert capsys.readouterr().out.startswith("device sim: lenet at batch 2 is ready, ")


def test_what_has_no_kernel_says_so_and_never_falls_back():
    @op
    def halve(x):
        return x / 2

    assert halve(np.ones(2)).tolist() == [0.5, 0.5]
    with pytest.raises(NotImplementedError, match="halve: has no kernel for sim yet; use cpu"):
        halve(to_device(np.ones(2, np.float32), "sim"))


def test_every_operation_has_kernels():
    operations = [o for o in (getattr(ops, name) for name in ops.__all__) if isinstance(o, Op)]
    assert [operation for operation in operations if not operation.has_kernels] == []


@pytest.mark.slow
def test_a_training_step_passes_every_check(monkeypatch):
    """Bounds, alignment, memory nobody has written, races: LeNet's whole step, in any order."""
    on = runtime("sim")
    model, loss = models.lenet(seed=0).to("sim"), nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters())
    x, labels = np.random.default_rng(0).random((3, 1, 32, 32), np.float32), np.arange(3)
    monkeypatch.setattr(on, "_modules", {})
    monkeypatch.setattr(on, "check", True)
    on.ran.clear()
    for order in ("forward", "shuffled"):
        monkeypatch.setattr(on, "order", order)
        optimizer.zero_grad()
        loss(model(to_device(x, "sim")), to_device(labels, "sim")).backward()
        optimizer.step()
    assert set(on.ran) == KERNELS - {"sgd_momentum"} | {"adam"}
