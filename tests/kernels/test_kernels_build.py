"""Every kernel becomes machine code for every architecture: no spills, few registers, no doubles.

A representative set by default, every specialisation that plans can ask for under `slow`. These are
facts about the compiler's output; nothing here runs.
"""

import itertools
import re
from collections import Counter
from functools import cache

import lock_file
import pytest

from gpuconv.cuda import source
from gpuconv.ops import conv2d_launch_few_channels as few_channels
from gpuconv.ops.conv2d_launch import Conv2dShape

compiler = pytest.importorskip("gpuconv.sim.compile", reason="the simulator is not installed")
if compiler.available():
    pytest.skip(compiler.available(), allow_module_level=True)

from gpuconv.sim import SimError, facts  # noqa: E402

try:
    facts.tool("cuobjdump"), facts.tool("nvdisasm")
except SimError as missing:
    pytest.skip(str(missing), allow_module_level=True)

SLOW = (pytest.mark.slow,)
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")

# The files of the loop in elementwise.cuh.
ELEMENTWISE = sorted(
    path.name for path in source.folder().glob("*.cu") if '"elementwise.cuh"' in path.read_text()
)
# The files whose arrays may have 16 bits.
STORING = [
    path.name for path in sorted(source.folder().glob("*.cu")) if "STORE*" in path.read_text()
]
# Files for tensor cores, and their numbers: format, type, elements of 16 bytes.
TENSOR = ("conv_mma.cu", "conv_mma_weight.cu", "pad_channels.cu", "weight_transform.cu")
FORMATS = (("BF16", "unsigned short", 8), ("TF32", "float", 4), ("FP16", "unsigned short", 8))
# At most this many registers: what leaves the blocks a multiprocessor that each file asks for.
CEILINGS = {"conv_simt.cu": 128, "conv_simt_weight.cu": 128, "conv_few_channels.cu": 128}
CEILINGS |= {"conv_small.cu": 128, "conv_small_backward.cu": 128, "linear_small.cu": 128}
CEILINGS |= dict.fromkeys((*ELEMENTWISE, "depthwise.cu"), 80)
CEILINGS |= dict.fromkeys(("batchnorm.cu", "batchnorm_pool.cu"), 80)
CEILINGS |= {"conv_mma.cu": 255, "conv_mma_weight.cu": 255}  # 128 are sums
DEFAULT_CEILING = 64
BLACKWELL_CEILING = 168  # of the large convolution tiles that ask for one block a processor


def gather(tile, a, b, out, uniform, bits, moments=0, across=None):
    return {
        "MOMENTS": moments,
        "TILE": tile,
        "TILE_N": across or tile,
        "VEC_A": a,
        "VEC_B": b,
        "VEC_OUT": out,
        "UNIFORM": uniform,
        "WINDOW_BITS": bits,
    }


# Windows of small convolutions, and the filters of a thread.
SMALL = [(3, 3, 2), (5, 5, 3), (5, 5, 8), (3, 3, 8), (3, 3, 5), (5, 5, 2), (2, 2, 6), (5, 2, 4)]


def weight(tile, across, a, b):
    return {"TILE": tile, "TILE_N": across, "VEC_A": a, "VEC_B": b, "VEC_OUT": b}


def specialisations():
    """(file, macros, representative): all that the plans can ask for."""
    for moments in (0, 1):
        yield "conv_simt.cu", gather(128, 4, 4, 4, 1, 1, moments), True
        yield "conv_simt.cu", gather(128, 4, 4, 4, 1, 1, moments, 64), True
    for a, b, out, bits in itertools.product((4, 1), (4, 1), (4, 1), (1, 0)):
        for uniform in (1, 0) if a == 4 else (0,):
            typical = bits == 1 and a == b == out and uniform == (a == 4)
            for moments in (0, 1):
                macros = gather(64, a, b, out, uniform, bits, moments)
                yield "conv_simt.cu", macros, typical and (moments == 0 or a == 4)
    for across in (128, 64):
        yield "conv_simt_weight.cu", weight(128, across, 4, 4), True
    for shape in ((3, 7, 7, 64), (3, 11, 11, 96), (3, 3, 3, 64), (1, 5, 5, 6)):
        yield "conv_few_channels.cu", first(*shape), shape[0] == 1 or shape[1] == 7
        yield "conv_few_channels.cu", {**first(*shape), "MOMENTS": 1}, shape[1] == 7
    for shape in ((3, 3, 3, 64), (1, 5, 5, 6)):  # far apart rows have no room together
        yield "conv_few_channels.cu", {**first(*shape), "WHOLE": 0}, False
    for shape in ((4, 9, 10, 12), (4, 1, 1, 3), (2, 11, 17, 24), (1, 1, 384, 17)):
        yield "conv_few_channels.cu", first(*shape), False
    for R, S, width in SMALL:
        yield "conv_small.cu", {"R": R, "S": S, "FILTERS": width}, width == 3
        for channels in (2, 3, 5, 8):
            macros = {"R": R, "S": S, "FILTERS": width, "CHANNELS": channels}
            yield "conv_small_backward.cu", macros, width == channels == 2
    for a, b in itertools.product((4, 1), (4, 1)):
        yield "conv_simt_weight.cu", weight(64, 64, a, b), a == b
    for vec, tap in itertools.product((4, 1), ("unsigned char", "int")):
        yield "maxpool.cu", {"VEC": vec, "TAP": tap}, vec == 4 and tap == "unsigned char"
    for file in ("bias_relu_pool.cu", *ELEMENTWISE, "layout.cu"):
        for vec in (4, 1):
            yield file, {"VEC": vec}, vec == 4
    for vec, tap in itertools.product((4, 1), ("unsigned char", "int")):
        yield "batchnorm_pool.cu", {"VEC": vec, "TAP": tap}, vec == 4 and tap == "unsigned char"
    for vec, average in itertools.product((4, 1), (1, 0)):
        yield "avgpool.cu", {"VEC": vec, "AVERAGE": average}, vec == 4 and average == 1
    for file in ("depthwise.cu", "batchnorm.cu", "channels.cu", "lrn.cu", "adaptive_avgpool.cu"):
        for vec in (4, 1):
            yield file, {"VEC": vec}, vec == 4
    for file, store, vec in itertools.product(STORING, ("half16", "brain16"), (4, 1)):
        macros = {"STORE": store, "VEC": vec, "TAP": "unsigned char", "AVERAGE": 1}
        yield file, macros, file == "batchnorm.cu" and vec == 4
    for label in ("int", "long long", "unsigned char"):
        yield "softmax_xent.cu", {"LABEL": label}, label == "int"
        yield "step.cu", {"LABEL": label}, label == "int"
    for vec, pixel, words in itertools.product((4, 1), ("unsigned char", "float"), (4, 1)):
        typical = vec == words == 4 and pixel == "unsigned char"
        yield "image_batch.cu", {"VEC": vec, "PIXEL": pixel, "WORDS": words}, typical
    for images, vec in ((1, 4), (1, 1), (2, 1), (4, 1)):
        yield "linear_small.cu", {"IMAGES": images, "VEC": vec}, vec == 4
    yield from tensor_cores()
    yield "optim.cu", {}, True
    yield "clip.cu", {}, True
    yield "scaler.cu", {}, True
    yield "sum_partials.cu", {}, True


def tensor_cores():
    """The code of BF16 and FP16 differs in one opcode: of FP16 one of each file."""
    for form, element, width in FORMATS:
        of_format = {"ELEMENT": element, "FORMAT": form}
        tiles = ((128, 128), (128, 256), (128, 64), (64, 64))[: 1 if form == "FP16" else 4]
        for tile, across in tiles:
            macros = {**of_format, "TILE": tile, "TILE_N": across, "VEC": width}
            typical = form == "BF16" and across == 128
            for backward, moments in ((0, 0), (1, 0), (0, 1)):
                passes = {"BACKWARD": backward, "MOMENTS": moments, "VEC_OUT": width}
                yield "conv_mma.cu", {**macros, **passes}, typical and not moments
            if tile == across == 64:
                for backward in (0, 1):
                    passes = {"BACKWARD": backward, "MOMENTS": 0, "VEC_OUT": 1}
                    yield "conv_mma.cu", {**macros, **passes}, False
            for whole in (1, 0) if across < 256 else ():
                more = {"BIAS": whole, "WHOLE": whole, "UNIFORM": whole}
                yield "conv_mma_weight.cu", {**macros, **more}, typical and whole == 1
        for source_type in dict.fromkeys(("float", element)):
            yield "pad_channels.cu", {**of_format, "SOURCE": source_type}, form == "BF16"
        yield "weight_transform.cu", of_format, form == "BF16"


def first(C, R, S, K):
    """What the plan asks for images of C channels under K filters of R x S."""
    return dict(few_channels.macros(Conv2dShape(1, C, 64, 64, K, R, S, 64, 64)))


def cases(architectures):
    """Parameters of a test: one for each specialisation and architecture."""
    return list(_cases(architectures))


def _cases(architectures):
    for file, macros, typical in specialisations():
        defines = tuple((name, str(value)) for name, value in macros.items())
        for arch in architectures:
            if arch == "sm_75" and file in TENSOR:
                continue
            # by default the newest; the largest tiles, which are near the limit, on two
            newest = arch == architectures[-1]
            simt = file not in TENSOR and macros.get("TILE") == 128
            default = typical and (newest or (arch == "sm_80" and simt))
            marks = () if default else SLOW
            name = " ".join([file, *(f"{n}={v}" for n, v in defines), arch])
            yield pytest.param(file, defines, arch, marks=marks, id=name)


def each_architecture(*names):
    """Parameters of a test: these architectures, by default the newest alone."""
    return [pytest.param(name, marks=() if name == names[-1] else SLOW) for name in names]


def options(defines):
    return tuple(f"-D{name}={value}" for name, value in defines)


@cache
def cubin(file, defines, arch):
    return compiler.to_cubin(source.text(file), options(defines), arch, file)


@cache
def ptx(file, defines):
    """The file's PTX without comments."""
    text = compiler.to_ptx(source.text(file), options(defines), "compute_80", file)
    return re.sub(r"//[^\n]*", "", text)


@cache
def threads_of(file, defines):
    """{kernel: threads of its blocks at most}, as the file's PTX has them."""
    found = re.findall(r"\.entry (\w+)\s*\([^)]*\)\s*\.maxntid (\d+)", ptx(file, defines))
    return {kernel: int(threads) for kernel, threads in found}


disassembly = cache(facts.disassembly)


@pytest.mark.parametrize(("file", "defines", "arch"), cases(ARCHITECTURES))
def test_machine_code_without_spills(file, defines, arch):
    found = facts.resources(cubin(file, defines, arch))
    assert set(found) == set(source.kernels(file, defines))
    ceiling = CEILINGS.get(file, DEFAULT_CEILING)
    narrow = ("TILE_N", "64") in defines or file == "conv_simt_weight.cu"
    if ("TILE", "128") in defines and (arch == "sm_100" or (arch == "sm_120" and narrow)):
        ceiling = max(ceiling, BLACKWELL_CEILING)
    lock_file.require(file, defines, arch, found, threads_of(file, defines))
    for kernel, (registers_, stack, _, local) in found.items():
        assert stack == local == 0, f"{kernel} spills {stack} bytes on {arch}"
        assert registers_ <= ceiling, f"{kernel} takes {registers_} registers on {arch}"


PTX_TYPES = {"f64": 8, "u64": 8, "u32": 4, "f32": 4, "s32": 4, "s64": 8, "b64": 8, "b32": 4}


@pytest.mark.parametrize(("file", "defines", "arch"), cases(("sm_80",)))
def test_ptx_has_no_doubles_and_the_declared_parameters(file, defines, arch):
    plain = ptx(file, defines)
    doubles = re.findall(r"^\s*(?:@!?%p\d+ )?(\w[\w.]*\.f64)\b", plain, re.MULTILINE)
    assert not doubles or file == "clip.cu", doubles[:3]  # the norm of all gradients is in double
    entries = dict(re.findall(r"\.entry (\w+)\s*\(([^)]*)\)", plain))
    declared = source.kernels(file, defines)
    assert set(entries) == set(declared)
    for name, signature in declared.items():
        found = re.findall(r"\.param \.(\w+)(?: \.ptr[^,]*?)? \w+_param_\d+", entries[name])
        sizes = [PTX_TYPES[kind] for kind in found]
        assert sizes == [8 if p.pointer else p.dtype.itemsize for p in signature.parameters]
        floats = [kind in ("f32", "f64") for kind in found]
        assert floats == [not p.pointer and p.dtype.kind == "f" for p in signature.parameters]


@pytest.mark.parametrize(("file", "defines", "arch"), cases(("sm_80",)))
def test_ptxas_can_fuse_nothing(file, defines, arch):
    """Arithmetic without a rounding mode may be fused by ptxas, so a card's bits could be others
    than the simulator's.
    """
    free = re.compile(r"\b(?:add|sub|mul|mad)(?:\.ftz)?(?:\.sat)?\.f(?:32|16|64)\S*[^;]*")
    found = free.findall(ptx(file, defines))
    assert not found, f"{len(found)} instructions without a rounding mode: {found[:3]}"


@pytest.mark.parametrize("arch", each_architecture("sm_80", "sm_120"))
def test_the_machine_code_keeps_apart_what_the_source_does(arch):
    """Two kernels that products and sums alone make up: machine code fuses where `fmaf` stands."""
    for file, kernel, fused in (
        ("activations.cu", "sigmoid_backward", False),
        ("activations.cu", "tanh_backward", True),
        ("batchnorm.cu", "batch_norm2d_track", False),
    ):
        code = disassembly(cubin(file, (("VEC", "4"),), arch))[kernel]
        assert ("FFMA" in code, "FMUL" in code) == (fused, True), kernel


@pytest.mark.parametrize(("bits", "taps"), [(1, "16, 15"), (0, "400, 500")])
def test_no_tap_is_shifted_out_of_its_word(bits, taps):
    """A constant expression with an undefined shift does not compile."""
    R, S = taps.split(", ")
    text = source.text("conv_simt.cu") + f"static_assert((tap_bits({R} - 1, {S} - 1), true));"
    defines = tuple((n, str(v)) for n, v in gather(64, 4, 4, 4, 1, bits).items())
    compiler.to_ptx(text, options(defines), "compute_80", "conv_simt.cu")


def main_loop(image, kernel):
    """Opcodes of the loop with the most FFMA, counted."""
    return max(loops(image, kernel), key=lambda loop: loop[2]["FFMA"])[2]


def inner_loops(image, kernel):
    """Opcodes of the loops with FFMA that hold no other such loop."""
    found = [loop for loop in loops(image, kernel) if loop[2]["FFMA"]]
    spans = [(begin, end) for begin, end, _ in found]
    return [
        counts
        for begin, end, counts in found
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans)
    ]


def loops(image, kernel):
    """(begin, end, opcodes counted) of each backward branch."""
    return facts.loops(disassembly(image)[kernel])


WIDE = {
    "adaptive_avgpool.cu": (
        "adaptive_avg_pool2d_forward",
        "adaptive_avg_pool2d_backward",
        "global_avg_pool2d_forward",
    ),
    "avgpool.cu": ("avg_pool2d_forward", "avg_pool2d_backward"),
    "batchnorm.cu": ("batch_norm2d_statistics", "batch_norm2d_forward", "batch_norm2d_backward"),
    "batchnorm_pool.cu": (
        "batch_norm2d_relu_max_pool2d_forward",
        "batch_norm2d_relu_max_pool2d_backward",
    ),
    "bias_relu_pool.cu": ("bias_relu_max_pool2d_forward", "bias_relu_max_pool2d_backward"),
    "channels.cu": ("copy_channels", "add_channels"),
    "depthwise.cu": ("conv2d_forward_depthwise", "conv2d_backward_data_depthwise"),
    "layout.cu": ("transpose",),
    "lrn.cu": ("local_response_norm_forward", "local_response_norm_backward"),
    "maxpool.cu": ("max_pool2d_forward", "max_pool2d_backward"),
}

# What moves by 4 bytes: argmax, four channels at a time, one store beside each of y's; and filters
# on their way to shared memory, where they lie in another order.
NARROW = {
    "max_pool2d_forward": {"STG"},
    "max_pool2d_backward": {"LDG"},
    "batch_norm2d_relu_max_pool2d_forward": {"STG"},
    "batch_norm2d_relu_max_pool2d_backward": {"LDG"},
    "bias_relu_max_pool2d_forward": {"STG"},
    "bias_relu_max_pool2d_backward": {"LDG"},
    "conv2d_forward_depthwise": {"LDG"},
    "conv2d_backward_data_depthwise": {"LDG"},
}


# Those whose stores differ most, in the default run: to disassemble a file takes half a second.
SOME_WIDE = [
    pytest.param(file, marks=() if file in ("batchnorm.cu", "layout.cu", "maxpool.cu") else SLOW)
    for file in WIDE
]


@pytest.mark.parametrize("arch", each_architecture("sm_75", "sm_90a", "sm_120"))
@pytest.mark.parametrize("file", SOME_WIDE)
def test_device_memory_is_moved_by_16_bytes(file, arch):
    """The compiler may take a vector's store apart: kernels/common.cuh, store_global."""
    defines = (("VEC", "4"), ("AVERAGE", "1")) if file == "avgpool.cu" else (("VEC", "4"),)
    code = disassembly(cubin(file, defines, arch))
    for kernel in WIDE[file]:
        moved = Counter(re.findall(r"\b((?:LDG|STG)\.[\w.]*)", code[kernel]))
        assert {name[:3] for name in moved} == {"LDG", "STG"}, kernel
        narrow = {name for name in moved if ".128" not in name}
        assert {name[:3] for name in narrow} == NARROW.get(kernel, set()), (kernel, moved)
        assert not any(re.search(r"\.[US](8|16)", name) for name in narrow), (kernel, moved)
        stores = {name: count for name, count in moved.items() if name.startswith("STG")}
        single = sum(count for name, count in stores.items() if name in narrow)
        assert single in (0, sum(stores.values()) - single), (kernel, moved)


BIG = [
    ("conv_simt.cu", "conv2d_forward_simt", gather(128, 4, 4, 4, 1, 1)),
    ("conv_simt.cu", "conv2d_backward_data_simt", gather(128, 4, 4, 4, 1, 1)),
    ("conv_simt.cu", "conv2d_forward_simt", gather(128, 4, 4, 4, 1, 1, 0, 64)),
    ("conv_simt.cu", "conv2d_backward_data_simt", gather(128, 4, 4, 4, 1, 1, 0, 64)),
    ("conv_simt_weight.cu", "conv2d_backward_weight_simt", weight(128, 128, 4, 4)),
    ("conv_simt_weight.cu", "conv2d_backward_weight_simt", weight(128, 64, 4, 4)),
]


@pytest.mark.parametrize("arch", each_architecture("sm_80", "sm_90a", "sm_120"))
@pytest.mark.parametrize(("file", "kernel", "macros"), BIG)
def test_the_inner_loop_is_mostly_multiplications(file, kernel, macros, arch):
    """64 FFMA a thread and step; 16-byte reads of shared memory; little else."""
    defines = tuple((name, str(value)) for name, value in macros.items())
    loop = main_loop(cubin(file, defines, arch), kernel)
    assert loop["FFMA"] == 512
    assert loop["LDL"] == loop["STL"] == 0
    assert loop["LDG"] == (3 if macros.get("TILE_N") == 64 else 2)
    assert loop["LDS"] <= 34  # 32 of fragments, one of each table of taps
    assert loop["BAR"] == 1
    assert loop["FFMA"] >= 0.8 * loop.total(), loop


@pytest.mark.parametrize("arch", each_architecture(*ARCHITECTURES[1:]))
@pytest.mark.parametrize(
    ("R", "S", "width"),
    [pytest.param(*each, marks=() if each == (3, 3, 2) else SLOW) for each in SMALL],
)
def test_small_convolutions_mostly_multiply(R, S, width, arch):
    """In each inner loop, of forward, backward data and backward weight."""
    window = (("R", str(R)), ("S", str(S)), ("FILTERS", str(width)))
    backward = (*window, ("CHANNELS", str(width)))
    found = inner_loops(cubin("conv_small.cu", window, arch), "conv2d_forward_small")
    found += inner_loops(cubin("conv_small_backward.cu", backward, arch), "conv2d_backward_small")
    assert len(found) >= 3
    for loop in found:
        assert loop["FFMA"] >= 0.6 * loop.total(), loop


@pytest.mark.parametrize("arch", each_architecture(*ARCHITECTURES[1:]))
@pytest.mark.parametrize(
    "shape",
    [(3, 7, 7, 64), (3, 3, 3, 64), pytest.param((3, 11, 11, 96), marks=SLOW)],
    ids=["7x7", "3x3", "11x11"],
)
def test_first_convolutions_mostly_multiply(shape, arch):
    """In each inner loop, of forward and backward weight."""
    image = cubin("conv_few_channels.cu", tuple(first(*shape).items()), arch)
    for kernel in ("conv2d_forward_few_channels", "conv2d_backward_weight_few_channels"):
        found = inner_loops(image, kernel)
        assert found, kernel
        for loop in found:
            assert loop["FFMA"] >= 0.6 * loop.total(), (kernel, loop)
