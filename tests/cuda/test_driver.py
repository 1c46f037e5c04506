"""Real CuPy over the stand-in driver (tests/driver): nothing here is a GPU's, but CuPy is itself.

The first half states what the stand-in does, by CUDA's documentation; the second half runs gpuconv.
"""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "driver"))

import driver  # noqa: E402

BEGIN = """
import json, sys
import driver
import numpy as np
library = driver.install(**json.loads(sys.argv[1]))
import cupy
from cupy.cuda import Stream, runtime

def codes(act):
    try:
        act()
    except runtime.CUDARuntimeError as error:
        return error.status
    return 0
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    try:
        return driver.environment(tmp_path_factory.mktemp("driver"))
    except driver.Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def run(environment):
    """Run a script over the driver; what it assigned to `said`."""

    def act(script, ends=0, **options):
        command = [sys.executable, "-c", f"{BEGIN}\n{script}\nprint('\\n' + json.dumps(said))"]
        done = subprocess.run(
            [*command, json.dumps(options)],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == ends, done.stdout[-2000:] + done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1]) if not ends else done.stderr

    return act


def for_each_seed(script):
    """What `script` says under several orders of work, in one process."""
    return f"""
found = []
for seed in range(16):
    library.standin_configure(1, seed)
{textwrap.indent(script, "    ")}
    found.append(said)
said = found
"""


# ---- what the stand-in does ----------------------------------------------------------------------


def test_cupys_own_kernels_run(run):
    said = run("""
a = cupy.arange(12, dtype=np.float32).reshape(3, 4)
said = [cupy.asnumpy(a.T.copy() * 2 + 1).tolist(), float(a.sum()), float(a.max()), driver.failures]
""")
    expected = [[2 * (i + 4 * j) + 1 for j in range(3)] for i in range(4)]
    assert said == [expected, 66.0, 11.0, []]


def test_fresh_memory_is_not_zero(run):
    assert run("said = bool(cupy.isnan(cupy.empty(1000, np.float32)).all())")


def test_the_host_cannot_read_device_memory(run):
    run(
        "import ctypes; a = cupy.zeros(4); said = ctypes.c_float.from_address(a.data.ptr).value",
        ends=-11,
    )


def test_work_runs_as_late_as_it_may(run):
    """A buffer that is refilled too soon, a result that is read too soon."""
    said = run("""
from cupyx import empty_pinned
source, back = empty_pinned(4, np.float32), empty_pinned(4, np.float32)
there = cupy.zeros(4, np.float32)
source[:], back[:] = 1, -1
stream = Stream(non_blocking=True)
runtime.deviceSynchronize()
with stream:
    there.set(source, stream)
    source[:] = 2
    there.get(stream, out=back, blocking=False)
early = back.tolist()
stream.synchronize()
said = [early, back.tolist()]
""")
    assert said == [[-1.0] * 4, [2.0] * 4]
    assert run("said = library.standin_pending()") == 0


def test_whoever_ends_an_event_or_a_stream_does_not_wait(run):
    said = run("""
from cupyx import empty_pinned
source, there = empty_pinned(1, np.float32), cupy.zeros(1, np.float32)
source[:] = 1
runtime.deviceSynchronize()
stream, event = runtime.streamCreateWithFlags(1), runtime.eventCreate()
runtime.memcpyAsync(there.data.ptr, source.ctypes.data, 4, 1, stream)
runtime.eventRecord(event, stream)
runtime.eventDestroy(event)
runtime.streamDestroy(stream)
source[:] = 2
runtime.deviceSynchronize()
said = [codes(lambda: runtime.eventRecord(event, 0)),
        codes(lambda: runtime.streamSynchronize(stream)), float(there[0])]
""")
    assert said == [400, 400, 2.0]


def test_work_may_also_run_at_once(run):
    """What the host writes after it has queued the copy comes too late, or does not."""
    script = """
from cupyx import empty_pinned
source, there, stream = empty_pinned(1, np.float32), cupy.zeros(1, np.float32), Stream()
source[:] = 1
runtime.deviceSynchronize()
runtime.memcpyAsync(there.data.ptr, source.ctypes.data, 4, 1, stream.ptr)
source[:] = 2
said = float(there[0])
"""
    assert set(run(for_each_seed(script))) == {1.0, 2.0}


ORDER = """
from cupyx import empty_pinned
a = cupy.zeros(1, np.int32)
values = empty_pinned(2, np.int32)
values[:] = 1, 2
one, two = Stream(non_blocking=True), Stream(non_blocking=True)
runtime.deviceSynchronize()
runtime.memcpyAsync(a.data.ptr, values.ctypes.data, 4, 1, one.ptr)
WAIT
runtime.memcpyAsync(a.data.ptr, values.ctypes.data + 4, 4, 1, two.ptr)
runtime.deviceSynchronize()
said = int(a[0])
"""


def test_streams_overtake_each_other_unless_an_event_holds_them(run):
    assert set(run(for_each_seed(ORDER.replace("WAIT", "")))) == {1, 2}
    waits = ORDER.replace("WAIT", "two.wait_event(one.record())")
    assert set(run(for_each_seed(waits))) == {2}


def test_the_default_stream_waits_and_is_waited_for(run):
    """By a stream that blocks; not by one that does not."""
    script = ORDER.replace("non_blocking=True", "non_blocking=False").replace(
        "WAIT", "runtime.memcpyAsync(a.data.ptr, values.ctypes.data, 4, 1, 0)"
    )
    assert set(run(for_each_seed(script))) == {2}


def test_a_captured_graph_replays(run):
    said = run("""
a, b = cupy.arange(4, dtype=np.float32), cupy.zeros(4, np.float32)
cupy.add(b, a, out=b)  # a first launch loads a module, which no capture permits
cupy.multiply(b, 0, out=b)
stream = Stream(non_blocking=True)
runtime.deviceSynchronize()
with stream:
    stream.begin_capture(runtime.streamCaptureModeThreadLocal)
    cupy.add(b, a, out=b)
    cupy.multiply(b, 2, out=b)
    graph = stream.end_capture()
runtime.deviceSynchronize()
before = cupy.asnumpy(b).tolist()
library.standin_forget_counts()
for _ in range(3):
    graph.launch()
runtime.deviceSynchronize()
said = [before, driver.calls(library), cupy.asnumpy(b).tolist()]
""")
    before, calls, after = said
    assert before == [0.0] * 4
    assert calls["cudaGraphLaunch"] == 3
    assert "cuLaunchKernel" not in calls
    assert after == [14 * k for k in (0, 1, 2, 3)]  # ((k*2 + k)*2 + k)*2


BRANCHES = """
from cupyx import empty_pinned
a, b = cupy.zeros(1, np.int32), cupy.zeros(1, np.int32)
values = empty_pinned(2, np.int32)
values[:] = 1, 2
one, two = Stream(non_blocking=True), Stream(non_blocking=True)
runtime.deviceSynchronize()
with one:
    one.begin_capture(runtime.streamCaptureModeThreadLocal)
    two.wait_event(one.record())
    runtime.memcpyAsync(a.data.ptr, values.ctypes.data, 4, 1, one.ptr)
    WAIT
    runtime.memcpyAsync(a.data.ptr, values.ctypes.data + 4, 4, 1, two.ptr)
    one.wait_event(two.record())
    runtime.memcpyAsync(b.data.ptr, a.data.ptr, 4, 3, one.ptr)
    graph = one.end_capture()
graph.launch(one)
one.synchronize()
said = [int(a[0]), int(b[0])]
"""


def test_branches_of_a_graph_overtake_each_other_unless_an_event_holds_them(run):
    """What comes after both sees both."""
    free = run(for_each_seed(BRANCHES.replace("WAIT", "")))
    assert sorted({tuple(pair) for pair in free}) == [(1, 1), (2, 2)]
    waits = run(for_each_seed(BRANCHES.replace("WAIT", "two.wait_event(one.record())")))
    assert {tuple(pair) for pair in waits} == {(2, 2)}


def test_launches_of_one_graph_follow_each_other_on_any_streams(run):
    said = run("""
a = cupy.zeros(1, np.int32)
b = cupy.zeros(8, np.int32)
add = cupy.ElementwiseKernel("", "raw int32 a, raw int32 b", "b[a[0]] = a[0] + 1; a[0] += 1", "k")
add(a, b, size=1)
one, two = Stream(non_blocking=True), Stream(non_blocking=True)
runtime.deviceSynchronize()
with one:
    one.begin_capture(runtime.streamCaptureModeThreadLocal)
    add(a, b, size=1)
    graph = one.end_capture()
for _ in range(3):
    graph.launch(one)
    graph.launch(two)
two.synchronize()
said = [library.standin_pending(), b.tolist()]
""")
    assert said == [0, [1, 2, 3, 4, 5, 6, 7, 0]]


def test_a_graph_over_memory_that_was_freed_fails(run):
    said = run("""
a, b = cupy.arange(4, dtype=np.float32), cupy.zeros(4, np.float32)
kernel = cupy.RawKernel('extern "C" __global__ void k(float* a) { a[0] += 1; }', "k")
kernel((1,), (1,), (a,))
stream = Stream(non_blocking=True)
runtime.deviceSynchronize()
with stream:
    stream.begin_capture(runtime.streamCaptureModeThreadLocal)
    kernel((1,), (1,), (a,))
    graph = stream.end_capture()
graph.launch()
said = [codes(runtime.deviceSynchronize)]
del a, b
cupy.get_default_memory_pool().free_all_blocks()
graph.launch()
said.append(codes(runtime.deviceSynchronize))
""")
    assert said == [0, 700]


def test_what_may_not_happen_during_a_capture(run):
    """900: not permitted; 901: the capture is spoiled; 902: two captures would merge; 904: a
    branch was not joined; 905: it would depend on work outside; 906: the default stream would
    depend on it; 907: an event of the capture.
    """
    said = run("""
a, out = cupy.ones(4), np.zeros(4)
other, event = Stream(non_blocking=True), cupy.cuda.Event(disable_timing=True)
runtime.deviceSynchronize()

relaxed = runtime.streamCaptureModeRelaxed

def clear(s):
    runtime.memsetAsync(a.data.ptr, 0, 8, 0)

def attempt(act, mode=runtime.streamCaptureModeThreadLocal, **kind):
    stream = Stream(**(kind or {"non_blocking": True}))
    with stream:
        stream.begin_capture(mode)
        first = codes(lambda: act(stream))
        return [first, codes(stream.end_capture)]

outside = Stream(non_blocking=True).record()

def branch(stream, joined, too_soon=False):
    event.record(stream)
    other.wait_event(event)
    runtime.memsetAsync(a.data.ptr, 0, 8, other.ptr)
    done = other.record()
    if too_soon:
        runtime.memsetAsync(a.data.ptr, 0, 8, other.ptr)
    if joined:
        stream.wait_event(done)

second = Stream(non_blocking=True)

def merge(stream):
    second.begin_capture()
    mark = second.record()
    try:
        stream.wait_event(mark)
    finally:
        codes(second.end_capture)

said = {
    "nothing": attempt(lambda s: None),
    "allocation": attempt(lambda s: runtime.malloc(1 << 20)),
    "allocation, relaxed": attempt(lambda s: runtime.malloc(1 << 20), relaxed),
    "copy to the host": attempt(
        lambda s: runtime.memcpyAsync(out.ctypes.data, a.data.ptr, 32, 2, s.ptr)
    ),
    "waiting for the stream": attempt(lambda s: s.synchronize()),
    "waiting for the device": attempt(lambda s: runtime.deviceSynchronize(), relaxed),
    "default stream": attempt(clear, non_blocking=False),
    "default stream, apart": attempt(clear),
    "its own event": attempt(lambda s: (event.record(s), event.synchronize())),
    "a branch": attempt(lambda s: branch(s, False)),
    "a joined branch": attempt(lambda s: branch(s, True)),
    "joined too soon": attempt(lambda s: branch(s, True, True)),
    "waiting for another stream": attempt(lambda s: other.synchronize()),
    "waiting for another stream, relaxed": attempt(lambda s: other.synchronize(), relaxed),
    "an event from outside": attempt(lambda s: s.wait_event(outside)),
    "another capture": attempt(merge),
    "whether the default stream captures": attempt(
        lambda s: Stream.null.is_capturing(), non_blocking=False
    ),
    "afterwards, its event": [codes(event.synchronize), codes(lambda: other.wait_event(event)),
                              codes(lambda: (event.record(other), event.synchronize()))],
}
""")
    assert said == {
        "nothing": [0, 0], "allocation": [900, 901], "allocation, relaxed": [0, 0],
        "copy to the host": [900, 901], "waiting for the stream": [900, 901],
        "waiting for the device": [900, 901], "default stream": [906, 901],
        "default stream, apart": [0, 0], "its own event": [907, 901], "a branch": [0, 904],
        "a joined branch": [0, 0], "joined too soon": [0, 904],
        "waiting for another stream": [900, 901], "waiting for another stream, relaxed": [0, 0],
        "an event from outside": [905, 901], "another capture": [902, 901],
        "whether the default stream captures": [906, 0], "afterwards, its event": [907, 907, 0],
    }  # fmt: skip


def test_what_another_thread_may_do_during_a_capture(run):
    """In the mode "global" nothing that could wait; otherwise all but waiting for the device."""
    said = run("""
import threading
a, stream = cupy.ones(4), Stream(non_blocking=True)
runtime.deviceSynchronize()

def attempt(act, mode):
    found = []
    with stream:
        stream.begin_capture(mode)
        thread = threading.Thread(target=lambda: found.append(codes(act)))
        thread.start()
        thread.join()
        return [*found, codes(stream.end_capture)]

acts = {"allocation": lambda: runtime.malloc(1 << 20),
        "event": lambda: cupy.cuda.Event().synchronize(),
        "device": runtime.deviceSynchronize}
modes = {"global": 0, "thread-local": 1, "relaxed": 2}
said = {f"{name}, {mode}": attempt(acts[name], modes[mode]) for name in acts for mode in modes}
""")
    spoiled, fine = [900, 901], [0, 0]
    assert said == {
        "allocation, global": spoiled, "allocation, thread-local": fine,
        "allocation, relaxed": fine, "event, global": spoiled, "event, thread-local": fine,
        "event, relaxed": fine, "device, global": spoiled, "device, thread-local": spoiled,
        "device, relaxed": spoiled,
    }  # fmt: skip


def test_threads_do_not_block_each_other(run):
    """A kernel's execution needs the interpreter, which the other thread holds as it asks."""
    said = run("""
import threading
kernel = cupy.RawKernel('extern "C" __global__ void k(float* a) { a[0] += 1; }', "k")

def launch(found):
    stream, a = Stream(non_blocking=True), cupy.zeros(1, np.float32)
    runtime.deviceSynchronize()
    for _ in range(50):
        with stream:
            kernel((1,), (1,), (a,))
        event = stream.record()
        while not event.done:
            runtime.getDevice()
    found.append(float(a[0]))

found = []
threads = [threading.Thread(target=launch, args=(found,)) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
said = found
""")
    assert said == [50.0] * 3


def test_wrong_launches_and_copies_are_refused(run):
    said = run("""
kernel = cupy.RawKernel('extern "C" __global__ void k(float* a) { a[0] = 1; }', "k")
a = cupy.zeros(4, np.float32)

def launch(grid, block, shared=0):
    try:
        kernel(grid, block, (a,), shared_mem=shared)
    except cupy.cuda.driver.CUDADriverError as error:
        return error.status
    return 0

said = [launch((1,), (1,)), launch((1,), (1025,)), launch((1, 65536), (1,)),
        launch((1,), (1,), 50_000), codes(lambda: runtime.memcpy(a.data.ptr, 0x1234, 1024, 1)),
        codes(lambda: runtime.memset(a.data.ptr, 0, 1 << 30))]
""")
    assert said == [0, 1, 1, 1, 1, 1]


def test_a_kernel_that_leaves_its_memory_is_the_last(run):
    """A failed kernel spoils the context: every later call fails too."""
    said = run("""
kernel = cupy.RawKernel('extern "C" __global__ void k(int* a) { asm("trap;"); a[0] = 1; }', "k")
a = cupy.zeros(4, np.int32)
kernel((1,), (1,), (a,))
said = [codes(runtime.deviceSynchronize), codes(runtime.deviceSynchronize)]
""")
    assert said == [700, 700]


def test_a_call_that_is_not_modelled_fails_by_name(run):
    said = run("said = [codes(lambda: runtime.deviceGetLimit(0)), driver.failures]")
    assert said == [801, ["cudaDeviceGetLimit is not modelled"]]


APPROXIMATE = """
code = 'extern "C" __global__ void k(float* y, const float* x, int n) '
code += '{ for (int i = 0; i < n; ++i) asm("%s" : "=f"(y[i]) : "f"(x[i]), "f"(1.5f)); }'
forms = {op: f"{op}.approx.ftz.f32 %0, %1;" for op in
         ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos")}
forms |= {"tanh": "tanh.approx.f32 %0, %1;", "div": "div.approx.ftz.f32 %0, %1, %2;"}
x = np.random.default_rng(0).uniform(0.1, 4, 500).astype(np.float32)
x[250:] = x[:250]
said = {}
for op, form in forms.items():
    y = cupy.zeros(500, np.float32)
    cupy.RawKernel(code % form, "k")((1,), (1,), (y, cupy.asarray(x), np.int32(500)))
    said[op] = y.tolist()
"""


def test_approximate_instructions_are_as_wrong_as_they_may_be(run):
    """By the bounds of the PTX ISA; equal operands give equal results; the seed decides."""
    x = np.random.default_rng(0).uniform(0.1, 4, 500).astype(np.float32).astype(np.float64)
    x[250:] = x[:250]
    exact = {"ex2": np.exp2(x), "lg2": np.log2(x), "rcp": 1 / x, "rsqrt": x**-0.5,
             "sqrt": x**0.5, "sin": np.sin(x), "cos": np.cos(x), "tanh": np.tanh(x),
             "div": x / 1.5}  # fmt: skip
    relative = {"ex2": -22, "rcp": -23, "rsqrt": -22.9, "sqrt": -23, "tanh": -11, "div": -22}
    bound = {op: 2.0**b * np.abs(exact[op]) for op, b in relative.items()}
    bound |= dict.fromkeys(("sin", "cos"), np.full(500, 2**-20.5))
    bound["lg2"] = 2**-22.6 * np.where(x < 2, np.where(x > 0.5, 1, -exact["lg2"]), exact["lg2"])
    found = [run(APPROXIMATE, approximate=seed) for seed in (0, 1, 2)]
    for op, expected in exact.items():
        plain, one, two = (np.array(each[op]) for each in found)
        for each in (one, two):
            assert (np.abs(each - expected) <= bound[op]).all(), op
            assert (each[250:] == each[:250]).all(), op
            assert (np.abs(each - expected) > np.abs(plain - expected)).sum() > 250, op
        assert (one != two).sum() > 100, op


# ---- gpuconv over it -----------------------------------------------------------------------------

STEPS = """
from gpuconv import models, nn, optim, to_device, to_numpy

def steps(device, optimizer, batch=8, count=3):
    model, criterion = models.lenet(seed=0).to(device), nn.CrossEntropyLoss()
    update = getattr(optim, optimizer)(model.parameters(), lr=1e-3)
    rng, losses = np.random.default_rng(0), []
    for _ in range(count):
        x, labels = rng.standard_normal((batch, 1, 32, 32), np.float32), rng.integers(0, 10, batch)
        update.zero_grad()
        loss = criterion(model(to_device(x, device)), to_device(labels, device))
        loss.backward()
        update.step()
        losses.append(float(loss))
    return losses, {name: to_numpy(a).tobytes().hex() for name, a in model.state_dict().items()}
"""


@pytest.mark.parametrize("seed", [0, 7])
def test_lenets_steps_have_the_simulators_bits(run, seed):
    script = STEPS + "said = [steps('cuda', 'Adam') == steps('sim', 'Adam'), driver.failures]"
    assert run(script, seed=seed) == [True, []]


def test_what_a_step_asks_of_the_driver(run):
    """Counted, not executed. Tables of the optimiser and the labels go up, the loss comes down."""
    said = run(
        STEPS + "for _ in range(2): steps('cuda', 'SGD')\n"
        "library.standin_forget_counts()\nsteps('cuda', 'SGD')\n"
        "said = [driver.calls(library), library.standin_copied(2)]",
        execute=False,
        defer=False,
    )
    calls, _ = said
    assert calls["cuLaunchKernel"] <= 3 * 40
    assert "cudaMalloc" not in calls
    assert "cudaDeviceSynchronize" not in calls


TENSORS = """
import contextlib, types
from gpuconv import nn, ops, to_numpy

class Tensor:
    # what gpuconv asks of a CUDA tensor of PyTorch
    requires_grad = is_quantized = False
    layout, dtype, is_cuda = "strided", "float32", True
    device = types.SimpleNamespace(type="cuda", index=0)

    def __init__(self, array):
        self.array = array

    detach = resolve_conj = resolve_neg = lambda self: self
    __dlpack__ = property(lambda self: self.array.__dlpack__)
    __dlpack_device__ = property(lambda self: self.array.__dlpack_device__)

own = Stream(non_blocking=True)
sys.modules["torch"] = types.SimpleNamespace(
    Tensor=Tensor, strided="strided", bfloat16="bfloat16", from_dlpack=Tensor,
    is_grad_enabled=lambda: False,
    cuda=types.SimpleNamespace(current_stream=lambda device: types.SimpleNamespace(
        cuda_stream=own.ptr)),
)
x = np.random.default_rng(0).standard_normal((2, 3, 8, 9), np.float32)
w = np.random.default_rng(1).standard_normal((4, 3, 3, 3), np.float32)
seen, launch = [], cupy.RawKernel.__call__
from gpuconv.cuda import cupy as runtime_module
start = runtime_module.CupyRuntime._start
def noted(self, *given):
    seen.append(cupy.cuda.get_current_stream().ptr == own.ptr)
    return start(self, *given)
runtime_module.CupyRuntime._start = noted
with own:
    tensors = [Tensor(cupy.asarray(a)) for a in (x, w)]
y = ops.conv2d(*tensors)
with own:
    found = to_numpy(y.array)
shared = nn.Tensor(tensors[0]).data
said = [type(y) is Tensor, bool(seen) and all(seen), shared.data.ptr == tensors[0].array.data.ptr,
        bool(np.allclose(found, ops.conv2d(x, w), rtol=1e-4, atol=1e-4)), driver.failures]
"""


def test_tensors_of_pytorch_run_on_its_stream(run):
    """The tensors are a stand-in's, sharing CuPy's memory by DLPack: PyTorch's own need a GPU."""
    assert run(TENSORS) == [True, True, True, True, []]


BATCHES = """
from gpuconv import to_numpy
from gpuconv.cuda.runtime import runtime as runtime_of
from gpuconv.data import Affine, Dataset, Loader, Shift
from gpuconv.data.on_device import batches_for

images = np.random.default_rng(3).integers(0, 256, (23, 2, 6, 5), np.uint8)
set_of, slots = Dataset(images, np.arange(23)), [cupy.full(1, n, np.uint32) for n in range(6)]

def wrong(augment, room):
    # batches that differ from the loader's, of those that are used later than they are made
    loader = Loader(set_of, 4, seed=1, augment=augment, size=7, mean=0.5)
    type(runtime_of("cuda")).free_memory = lambda self: room
    batches, kept = batches_for(loader, "cuda"), []
    for epoch in range(2):
        for first in (0, 4, 5):
            count, size = batches.prepare(epoch, first, 4)
            for number in range(count):
                if batches.feed is not None:
                    batches.feed()
                x, labels = batches.load(size, slots[number])
                kept.append((x.copy(), labels.copy()))  # on the card, in order
    batches.prepare(0, 0, 1)
    sizes, kinds = zip(*((a.size, a.dtype) for a in (batches._images, batches._labels)))
    del batches  # a copy that still goes on may not reach what has the memory next
    others = [cupy.zeros(size, kind) for size, kind in zip(sizes, kinds)]
    runtime.deviceSynchronize()
    assert not any(to_numpy(other).any() for other in others)
    expected = [pair for epoch in range(2) for pair in loader.batches(epoch)]
    return sum(not (np.array_equal(to_numpy(x), own_x) and np.array_equal(to_numpy(y), own_y))
               for (x, y), (own_x, own_y) in zip(kept, expected, strict=True))
"""


@pytest.mark.parametrize("seed", [0, 5])
def test_batches_are_the_loaders_whatever_the_order_of_work(run, seed):
    """Images that live on the card, that come by a stream as bytes, and as prepared floats."""
    script = BATCHES + (
        "said = [wrong(Shift(1), 1 << 30), wrong(Shift(1), 0), wrong(Affine(9), 0),"
        " driver.failures]"
    )
    assert run(script, seed=seed) == [0, 0, 0, []]


@pytest.mark.parametrize("batch", [64, 128, 512])
def test_a_replayed_step_is_one_graph_launch(environment, batch):
    """Of LeNet in Trainer.fit with its loader and progress. Counted, not executed."""
    command = [sys.executable, str(ROOT / "benchmarks" / "replay.py"), str(batch), "--json"]
    command += ["--steps", "200", "--runs", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["calls"] <= 60
    queries = ("cudaGetDevice", "cudaSetDevice", "cudaStreamIsCapturing")  # that send nothing
    sent = {name: n for name, n in found["driver"].items() if name not in queries}
    assert sent.pop("cudaGraphLaunch") == 1
    # Once in at most 64 steps, and at an epoch's end: a row for each image, a row for each step,
    # the ring back.
    assert all(n < 0.12 for n in sent.values()), sent


TRAINED = """
from gpuconv import data, models, nn, optim, train

def network():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Dropout(0.3, seed=5), nn.Linear(4, 3),
    )
    return model.apply(lambda module: module.reset_parameters(np.random.default_rng(3)))

def summed(scores, labels):
    first, second = nn.functional.cross_entropy(scores, labels), nn.functional.hinge(scores, labels)
    return 0.5 * first + (1 - second.detach() / 3)

def trained(device, graph, pixels, precision="ieee", loss="cross_entropy"):
    rng, said = np.random.default_rng(0), []
    listener = train.Callback()
    listener.on_message = said.append
    images = data.Dataset(pixels, np.arange(len(pixels)) % 3)
    training = data.Loader(images, 8, seed=1, augment=data.augment.Shift(1))
    held = data.Loader(images, 8, shuffle=False)
    model = network().to(device)
    optimizer, average = optim.Adam(model.parameters(), 0.01), optim.EMA(model, 0.9)
    trainer = train.Trainer(
        model, loss, optimizer, optim.CosineLR(0.05, 25), 0.5, average, [listener],
        progress=False, graph=graph, precision=precision, scale_growth=3,
    )
    losses = [r["loss"] for r in trainer.fit(training, held, epochs=5)]
    arrays = {**model.state_dict(), **average.state_dict()}
    return [losses, {name: a.tobytes().hex() for name, a in arrays.items()}], said[1:]

rng = np.random.default_rng(1)
whole, parts = rng.integers(0, 256, (36, 1, 6, 6), np.uint8), rng.random((36, 1, 6, 6), np.float32)
"""


@pytest.mark.parametrize(("seed", "pixels"), [(0, "whole"), (7, "parts"), (8, "summed")])
def test_graphs_have_the_bits_of_ordinary_steps(run, seed, pixels):
    """Also where batches are copied one by one, in a stream of their own, and a loss is a sum."""
    given = "parts, loss=summed" if pixels == "summed" else pixels
    said = run(
        TRAINED + f"found, said = trained('cuda', True, {given})\n"
        "calls = driver.calls(library)\n"
        f"said = [found == trained('sim', False, {given})[0], said, calls['cudaGraphLaunch'], "
        "driver.failures]",
        seed=seed,
    )
    # Of 5 epochs of 4 whole batches and one smaller all but three and two, and of as many
    # evaluations all but two and two.
    same, said, launched, failures = said
    assert (same, said, failures) == (True, [], [])
    assert launched == 17 + 3 + 18 + 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_graphs_of_steps_in_16_bits_have_the_bits_of_ordinary_ones(run, precision):
    """In fp16 the scale begins where gradients overflow, and grows again."""
    said = run(
        TRAINED
        + f"""
init = optim.LossScaler.__init__
optim.LossScaler.__init__ = lambda self, device, growth: init(self, device, 2.0**40, growth)
found, said = trained("cuda", True, whole, "{precision}")
calls = driver.calls(library)
same = found == trained("sim", False, whole, "{precision}")[0]
said = [same, said, calls["cudaGraphLaunch"], driver.failures]
"""
    )
    assert said == [True, [], 17 + 3 + 18 + 3, []]


BY_HAND = """
from gpuconv import data, nn, optim, to_device, train

def by_hand(device, replayed):
    layers = nn.Conv2d(1, 4, 3, rng=0), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3, rng=1)
    model = nn.Sequential(*layers).to(device)
    optimizer = optim.SGD(model.parameters(), 0.1, 0.9)

    def part(batch, weight):
        scores = model(batch["x"])
        loss = weight * nn.functional.cross_entropy(scores, batch["labels"])
        loss.backward()
        return loss, nn.functional.hinge(scores, batch["labels"]) / 2

    step, losses = train.recorded(part, model, optimizer) if replayed else part, []
    rng = np.random.default_rng(0)
    for i in range(24):
        x, labels = rng.random((4, 1, 6, 6), np.float32), rng.integers(0, 3, 4)
        losses += step({"x": to_device(x, device), "labels": to_device(labels, device)}, 0.25)
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return [loss.item() for loss in losses], [p.numpy().tobytes().hex() for p in model.parameters()]
"""


@pytest.mark.parametrize("seed", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_steps_of_ones_own_add_up_gradients(run, seed):
    said = run(
        BY_HAND + "found = by_hand('cuda', True)\n"
        "launched = driver.calls(library)['cudaGraphLaunch']\n"
        "said = [found == by_hand('sim', False), launched, driver.failures]",
        seed=seed,
    )
    # One until momentum is there; then all but two of five without a gradient, and of 15 with one.
    assert said == [True, 1 + 3 + 13, []]


SEVERAL = (
    TRAINED
    + """
import standin_nccl
cupy.cuda.nccl = standin_nccl

def several(pixels, times, device, **options):
    parts = [[*range(len(pixels))[start:][:8]] * times for start in range(0, len(pixels), 8)]
    order = [i for part in parts for i in part]
    images = data.Dataset(pixels[order], np.arange(len(pixels))[order] % 3)
    loader, said = data.Loader(images, 8 * times, shuffle=False), []
    listener = train.Callback()
    listener.on_message = said.append
    model = network().to(device)
    optimizer, average = optim.Adam(model.parameters(), 0.01), optim.EMA(model, 0.9)
    trainer = train.Trainer(
        model, "cross_entropy", optimizer, optim.CosineLR(0.05, 25), 0.5, average, [listener],
        progress=False, **options,
    )
    losses = [(r["loss"], r["accuracy"]) for r in trainer.fit(loader, epochs=5)]
    arrays = {**model.state_dict(), **average.state_dict()}
    lines = [line for line in said if "images are on" not in line]
    return [losses, {name: a.tobytes().hex() for name, a in arrays.items()}], lines

twin = standin_nccl.Twin(2)
alone = several(whole, 1, "sim", graph=False)[0]
"""
)


@pytest.mark.parametrize("seed", [0, 7])
def test_sums_of_cards_by_nccl(run, seed):
    """The lines of the NCCL path against a stand-in for `cupy.cuda.nccl`: rank 0 of two of which
    the other has the same images, so that both train as one process with these alone, to the bit.
    The sums are in the graphs: no step but the first ones of each kind calls NCCL.
    """
    said = run(
        SEVERAL + "found, said = several(whole, 2, 'cuda', communicator=twin)\n"
        "calls = driver.calls(library)\n"
        "said = [found == alone, said, calls['cudaGraphLaunch'], standin_nccl.calls,"
        " driver.failures]",
        seed=seed,
    )
    same, messages, launched, calls, failures = said
    assert (same, messages, failures) == (True, [], [])
    assert launched == 17 + 3
    # In each of 3 + 2 steps that are not replayed, and in the captures of two: the loss, the
    # gradients, the running statistics.
    assert calls["groups"] == (3 + 1 + 2 + 1) * 3


@pytest.mark.slow
def test_cards_whose_steps_are_not_recorded(run):
    """Where the host has a part in a step, a line says so; the result is the same."""
    said = run(
        SEVERAL + "said = []\n"
        "for options in ({'graph': False}, {'sync_batchnorm': True}):\n"
        "    found, lines = several(whole, 2, 'cuda', communicator=twin, **options)\n"
        "    said.append([found == alone, lines])\n"
        "said.append(driver.failures)"
    )
    (same, lines), (_, others), failures = said
    assert same
    assert lines == failures == []
    assert others == [
        "the steps are not recorded: batch norm's statistics are exchanged by the host"
    ]


def test_a_recorded_step_s_memory_is_its_own(run):
    """Its pool is not the common one, and what is freed and filled between replays changes nothing
    (the arrays hold NaN before they are written).
    """
    said = run(
        TRAINED
        + """
class Meddle(train.Callback):
    def on_batch_end(self, trainer):
        cupy.get_default_memory_pool().free_all_blocks()
        self.junk = [cupy.full(n, np.nan, np.float32) for n in (64, 1000, 30_000) for _ in range(9)]

own, init = [], train.Trainer.__init__
def meddling(self, *args, **options):
    init(self, *args, **options)
    self.callbacks.append(Meddle())
expected = trained('cuda', True, whole)[0]
train.Trainer.__init__ = meddling
said = expected == trained('cuda', True, whole)[0]
"""
    )
    assert said


PEAK = """
import gc
from gpuconv import data, models, optim, train
from gpuconv.cuda import recording
from gpuconv.cuda.cupy import CupyRuntime

def finite(self, array):  # no kernel computes the loss
    if recording.state.recorder is not None:
        recording.state.recorder.scalars.append(array)
        return recording.state.recorder.host_numbers.read(1.0)
    return 1.0

CupyRuntime.scalar = finite

def peak(graph, model, batch, shape):
    "The most memory that the driver has given away after a step, in bytes."
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    free = runtime.memGetInfo()[0]
    class Watch(train.Callback):
        most = 0
        def on_batch_end(self, trainer):
            self.most = max(self.most, free - runtime.memGetInfo()[0])
    source = data.Dataset(np.zeros((batch * 6, *shape), np.uint8), np.arange(batch * 6) % 10)
    model = getattr(models, model)(seed=0, num_classes=10).to("cuda")
    optimizer = optim.SGD(model.parameters(), 0.1, 0.9)
    trainer = train.Trainer(model, "cross_entropy", optimizer, progress=False, graph=graph,
                            callbacks=[watch := Watch()])
    trainer.fit(data.Loader(source, batch))
    return watch.most

said = [peak(graph, *case) for case in (("lenet", 512, (1, 32, 32)), ("resnet18", 8, (3, 64, 64)))
        for graph in (False, True)]
said.append(driver.calls(library)["cudaGraphLaunch"])
"""


def test_recorded_steps_take_no_more_memory(run):
    *peaks, launched = run(PEAK, execute=False, defer=False)
    assert launched == 2 * 3
    for ordinary, recorded in zip(peaks[::2], peaks[1::2], strict=True):
        assert recorded <= 1.05 * ordinary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("approximate", "cases"), [(0, "lenet"), (0, "linear"), (1, "lenet"), (1, "cast")]
)
def test_the_gpu_check_runs_whole(environment, tmp_path, approximate, cases):
    """On a machine with nothing but an interpreter, CuPy and a checkout, in small; and on a card
    whose approximate instructions are as wrong as PTX permits. linear: on tensor cores.
    """
    start = f"import driver\ndriver.install(approximate={approximate})\n"
    (tmp_path / "sitecustomize.py").write_text(start)
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--quick", "--batch", "1"]
    command += ["--budget", "1800", "--only", "times"]
    command += ["--only", "steps", "--only", "lenet"] * (cases == "lenet")
    command += ["--out", str(out), "--seconds", "0.001", "--cases", cases, "--case-batch", "2"]
    command += ["--images", "64", "--floor", "0", "--flushed", "4096", "--side", "8"]
    command += ["--rounds", "2", "--steps", "2"]
    if approximate and cases == "lenet":
        files = ("kernels/test_kernels_dense", "kernels/test_kernels_norm", "cuda/test_runtime_ops")
        command += ["--only", "tests", *(f"--tests=tests/{file}.py" for file in files)]
    paths = f"{tmp_path}:{environment['PYTHONPATH']}"
    done = subprocess.run(
        command, env=environment | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (text,) = (path.read_text() for path in out.glob("*.md"))
    for precision in ("tf32-conv", "bf16", "fp16") if cases == "lenet" else ("bf16", "fp16"):
        assert re.search(rf"^\| {cases}.*\b{precision}\b.* [mu]s \|", text, re.MULTILINE), text
    assert "no figure here is a measurement" in text
