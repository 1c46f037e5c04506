"""The kernels' checks have teeth: each kernel deliberately broken, and the very functions that the
sweeps call must notice. The unbroken twins pass the same calls.

A mutation is a text that occurs exactly once in the kernel's source, and what takes its place: one
that no longer applies, or no longer compiles, fails too.
"""

from functools import cache

import kernel_runs
import numpy as np
import pytest
import test_kernels_bias_relu_pool as joined
import test_kernels_conv as convolution
import test_kernels_dense as dense
import test_kernels_few_channels as few
import test_kernels_image_batch as batches
import test_kernels_moments as moments
import test_kernels_norm as norm
import test_kernels_norm_pool as pooled_norm
import test_kernels_optim as optimisers
import test_kernels_pool as pooling
import test_kernels_small as small
import test_kernels_step as steps
from kernel_runs import sim

from gpuconv.cuda import source, split_k

# ---- checks: what the sweeps call, over a few of their cases -------------------------------------


def conv(*seeds, **how):
    return lambda: [convolution.compare(*convolution.sweep_case(s), **how) for s in seeds]


def pool():
    for seed in (3, 4, 7):
        pooling.compare(*pooling.sweep_case(seed))
    pooling.test_infinity_is_a_value_and_not_a_start()


def joined_pool():
    for seed in (1, 5, 6, 7):
        joined.compare(*joined.case(seed))


def depthwise(*seeds):
    return lambda: [convolution.compare(*convolution.depthwise_case(s)) for s in seeds]


def split():
    with pytest.MonkeyPatch.context() as patch:
        kernel_runs.set_constant(patch, split_k, "MIN_SPLIT", 16)
        convolution.compare(*convolution.draw(8, 3, 5, 14, 13, 6, 3, 3), passes="wb")


def relu():
    dense.test_relu_equals_the_definition(1025, True)


def losses():
    for case in dense.LOSSES:
        dense.test_losses(*case, 17, 32, np.int32)
    dense.test_a_label_out_of_range_gives_nan_and_reads_nothing()


def seeds(compare, *chosen):
    return lambda: [compare(seed) for seed in chosen]


def small_layers():
    for seed in (1, 2, 4, 7):
        with pytest.MonkeyPatch.context() as patch:
            small.compare(seed, patch)


CHECKS = {
    "small": small_layers,
    "vectors": conv(3, 7),  # channels in fours: 16-byte loads
    "scalars": conv(0, 2, 10),
    "bounds": conv(3, check=True),
    "groups": conv(6, 12, 13),
    "split": split,
    "first": lambda: [few.compare_first(seed) for seed in (0, 3, 15)],
    "depthwise": depthwise(0, 1, 5),
    "pool": pool,
    "joined pool": joined_pool,
    "relu": relu,
    "losses": losses,
    "softmax": lambda: dense.test_softmax(9, 31),
    "elementwise": lambda: dense.test_sums_products_and_dropout_equal_the_definitions(1023),
    "transpose": lambda: dense.test_transposes_equal_numpy(3, 31, 33),
    "norm": seeds(norm.compare_norm, 0, 1, 2),
    "pooled norm": seeds(pooled_norm.compare, 0, 1, 2),
    "first moments": lambda: moments.test_few_channels(0),
    "moments": lambda: [moments.compare(*convolution.sweep_case(s)) for s in (3, 7)],
    "response": seeds(norm.compare_response, 0, 1, 2),
    "adaptive": seeds(norm.compare_adaptive, 0, 1, 2),
    "batches": seeds(batches.compare, 2, 4, 5, 8),
    "batches alike": lambda: batches.test_images_in_the_middle((6, 9)),
    "adam": lambda: optimisers.test_adam(optimisers.Adam, False, True),
    "answers": lambda: [
        steps.test_right_answers_are_numpys_argmax((40, 64), kind) for kind in ("ties", "NaN")
    ],
    "clipping": lambda: steps.test_clipping(1.0, True),
}

# name: (file, the text as it is, what takes its place, check)
MUTATIONS = {
    "a row of a patch left out, small": (
        "conv_small.cu",
        "load_pairs(below, in + (r + 1) * pitch);",
        "load_pairs(below, in + r * pitch);",
        "small",
    ),
    "the filters not turned, small": (
        "conv_small_backward.cu",
        "const int turned = R * S - 1 - (place - k * (R * S));",
        "const int turned = place - k * (R * S);",
        "small",
    ),
    "the last slice of a group left out": (
        "conv_small_backward.cu",
        "for (int i = 1; i < count; ++i) {",
        "for (int i = 1; i < count - 1; ++i) {",
        "small",
    ),
    "a pool's maximum one to the left, small": (
        "conv_small_backward.cu",
        "v[t] = t == tap ? relu_mask(d, sign) : 0.0f",
        "v[t] = t == (tap ^ 1) ? relu_mask(d, sign) : 0.0f",
        "small",
    ),
    "a border one too wide": (
        "conv_simt.cu",
        "return (unsigned)(start + t * step) < (unsigned)size;",
        "return (unsigned)(start + t * step) <= (unsigned)size;",
        "scalars",
    ),
    "half of the lanes' moments": (
        "conv_simt.cu",
        "merge_lanes(mine, 4);",
        "merge_lanes(mine, 8);",
        "moments",
    ),
    "moments of rows past the last": (
        "conv_simt.cu",
        "return quad_row(i / 4) + i % 4 < rows;",
        "return true;",
        "moments",
    ),
    "moments of the sums without the bias": (
        "conv_simt.cu",
        "values[i] = sums[i][j] + bias;",
        "values[i] = sums[i][j];",
        "moments",
    ),
    "the rest of a gradient left out": (
        "conv_simt.cu",
        "value.v[v] += rest.v[v];",
        "value.v[v] += 0.0f;",
        "vectors",
    ),
    "the sums of the first group of parts alone": (
        "conv_simt_weight.cu",
        "result(i, sum_rows(partials + i, groups, (long long)group * size));",
        "result(i, sum_rows(partials + i, 1, (long long)group * size));",
        "split",
    ),
    "the summand of a residual block left out": (
        "batchnorm.cu",
        "value += more[j].v[k];",
        "",
        "norm",
    ),
    "a maximum before the ReLU": (
        "batchnorm_pool.cu",
        "const float z = relu(of.y(in.v[k], k));",
        "const float z = of.y(in.v[k], k);",
        "pooled norm",
    ),
    "a border one too narrow, backward weight": (
        "conv_simt_weight.cu",
        "(unsigned)(top + h[i]) < (unsigned)H",
        "(unsigned)(top + h[i]) < (unsigned)H - 1",
        "scalars",
    ),
    "no barrier before a panel is read": (
        "conv_simt.cu",
        "b.put(panels.b[~step & 1]);\n        __syncthreads();",
        "b.put(panels.b[~step & 1]);",
        "vectors",
    ),
    "no barrier between the tile's rows and its columns": (
        "layout.cu",
        "__syncthreads();\n        for (int c = line",
        "for (int c = line",
        "transpose",
    ),
    "no barrier in the tree of a sum": (
        "softmax_xent.cu",
        "__syncthreads();\n        if (threadIdx.x < half)",
        "if (threadIdx.x < half)",
        "losses",
    ),
    "no barrier before the partial sums": (
        "depthwise.cu",
        "partial[threadIdx.x] = sum;\n    __syncthreads();",
        "partial[threadIdx.x] = sum;",
        "depthwise",
    ),
    "strides exchanged": (
        "conv_simt.cu",
        "p * stride_h - pad_h, q * stride_w - pad_w, pixel",
        "p * stride_w - pad_h, q * stride_h - pad_w, pixel",
        "scalars",
    ),
    "paddings exchanged": (
        "conv_simt_weight.cu",
        "top = p * stride_h - pad_h, left = q * stride_w - pad_w",
        "top = p * stride_h - pad_w, left = q * stride_w - pad_h",
        "scalars",
    ),
    "the mask the wrong way round": (
        "conv_simt.cu",
        "if (use_mask) {",
        "if (!use_mask) {",
        "vectors",
    ),
    "the last tap dropped": (
        "conv_simt.cu",
        "tap < R * S ? tap_of(tap)",
        "tap < R * S - 1 ? tap_of(tap)",
        "scalars",
    ),
    "the filter transposed": (
        "conv_simt.cu",
        "const int r = tap / S, s = tap - r * S;",
        "const int s = tap / S, r = tap - s * S;",
        "scalars",
    ),
    "no guard behind the last filter": (
        "conv_simt.cu",
        "first + TILE_N / 4 * i < filters && k < reduction",
        "k < reduction",
        "bounds",
    ),
    "a bias missing": (
        "conv_simt.cu",
        "if (use_bias) value.v[v] += b[k + v];",
        "",
        "scalars",
    ),
    "one bias for a whole vector": (
        "conv_simt.cu",
        "value.v[v] += b[k + v];",
        "value.v[v] += b[k];",
        "vectors",
    ),
    "dilation ignored": (
        "conv_simt.cu",
        "{H, dil_h}, {W, dil_w}, R",
        "{H, 1}, {W, 1}, R",
        "scalars",
    ),
    "every group reads the first one's channels": (
        "conv_simt.cu",
        "GatherLoader a = {x + from.group * channels,",
        "GatherLoader a = {x,",
        "groups",
    ),
    "parts overlap by a pixel": (
        "conv_simt_weight.cu",
        "end = (int)min((long long)begin + split_length, (long long)pixels)",
        "end = (int)min((long long)begin + split_length + 1, (long long)pixels)",
        "split",
    ),
    "the second partial sum left out": (
        "sum_partials.cu",
        "for (int s = begin + 1; s < end; ++s)",
        "for (int s = begin + 2; s < end; ++s)",
        "split",
    ),
    "no barrier before the next row of filters": (
        "conv_few_channels.cu",
        "if (!WHOLE) __syncthreads();",
        "",
        "first",
    ),
    "no barrier before a tile's moments": (
        "conv_few_channels.cu",
        "if (WHOLE && MOMENTS) __syncthreads();",
        "",
        "first moments",
    ),
    "a segment's pixels past the last one": (
        "conv_few_channels.cu",
        "count = min(TILE_COLUMNS, Q - q0);",
        "count = TILE_COLUMNS;",
        "first",
    ),
    "a part's sums left out": (
        "conv_few_channels.cu",
        "other < PARTS; ++other)",
        "other < PARTS - 1; ++other)",
        "first",
    ),
    "dilation of the rows ignored": (
        "conv_few_channels.cu",
        "p0 * stride_h - pad_h + r * dil_h",
        "p0 * stride_h - pad_h + r",
        "first",
    ),
    "dilation of the rows ignored, all rows at once": (
        "conv_few_channels.cu",
        "from += r * dil_h * line",
        "from += r * line",
        "first",
    ),
    "the last of equal maxima wins": (
        "maxpool.cu",
        "in.v[k] > best.v[k]",
        "in.v[k] >= best.v[k]",
        "pool",
    ),
    "max-pool loses NaN": ("maxpool.cu", " || in.v[k] != in.v[k])", ")", "pool"),
    "minus infinity taken for nothing seen": (
        "maxpool.cu",
        "best_tap.v[k] == NONE ||",
        "best.v[k] == -1.0f / 0.0f ||",
        "pool",
    ),
    "the place of the maximum by columns": (
        "maxpool.cu",
        "best_tap.v[k] = r * S + s;",
        "best_tap.v[k] = s * R + r;",
        "pool",
    ),
    "a window too many covers a pixel": (
        "maxpool.cu",
        "(at - reach + stride - 1) / stride",
        "(at - reach) / stride",
        "pool",
    ),
    "a maximum's window found by columns": (
        "maxpool.cu",
        "best.v[k] == r * S + s",
        "best.v[k] == s * S + r",
        "pool",
    ),
    "the gradient of one window of several": (
        "batchnorm_pool.cu",
        "sum.v[k] += d.v[k];",
        "sum.v[k] = d.v[k];",
        "pooled norm",
    ),
    "ReLU's gradient without its mask, pooled": (
        "bias_relu_pool.cu",
        "relu_mask(d.v[k], sign.v[k])",
        "d.v[k]",
        "joined pool",
    ),
    "a partial window taken for a whole one": (
        "bias_relu_pool.cu",
        "right = 2 * q + 1 < W;",
        "right = true;",
        "joined pool",
    ),
    "a row left over not written": (
        "bias_relu_pool.cu",
        "if (!cell.has(tap)) continue;\n                Floats<VEC> out;",
        "if (!cell.has(tap) || !pooled) continue;\n                Floats<VEC> out;",
        "joined pool",
    ),
    "the average divides by the whole window": (
        "avgpool.cu",
        "sum.v[k] /= (float)max(taps, 1);",
        "sum.v[k] /= (float)(R * S);",
        "pool",
    ),
    "a border one too wide, depthwise": (
        "depthwise.cu",
        "w < 0 || w >= W) continue;",
        "w < 0 || w > W) continue;",
        "depthwise",
    ),
    "ReLU loses NaN": (
        "relu.cu",
        "return x <= 0.0f ? 0.0f : x;",
        "return x > 0.0f ? x : 0.0f;",
        "relu",
    ),
    "ReLU's derivative at 0": (
        "relu.cu",
        "return y <= 0.0f ? 0.0f : dy;",
        "return y < 0.0f ? 0.0f : dy;",
        "relu",
    ),
    "the tail behind the last vector cut short": (
        "elementwise.cu",
        "vectors * VEC + first; i < count;",
        "vectors * VEC + first; i + 1 < count;",
        "elementwise",
    ),
    "the last of equal scores": (
        "step.cu",
        "(equal && j < at)",
        "(equal && j > at)",
        "answers",
    ),
    "a NaN that is no answer": (
        "step.cu",
        "const bool larger = x > best || (isnan(x) && !isnan(best));",
        "const bool larger = x > best;",
        "answers",
    ),
    "squares of half a chunk": (
        "clip.cu",
        "j < CHUNK && j < left; j += 256)\n            sum",
        "j < CHUNK / 2 && j < left; j += 256)\n            sum",
        "clipping",
    ),
    "the dropout's counter one off": (
        "elementwise.cu",
        "(unsigned long long)(i + 1) * 0x9E37",
        "(unsigned long long)i * 0x9E37",
        "elementwise",
    ),
    "half a warp left out of its sum": (
        "softmax_xent.cu",
        "for (int lane = 16; lane > 0; lane /= 2) value += ",
        "for (int lane = 8; lane > 0; lane /= 2) value += ",
        "softmax",
    ),
    "a label out of range is followed": (
        "softmax_xent.cu",
        "const bool known = label >= 0 && label < classes;\n        const Softmax",
        "const bool known = label < classes;\n        const Softmax",
        "losses",
    ),
    "no barrier in the tree of moments": (
        "batchnorm.cu",
        "__syncthreads();\n        if (row < half) {\n            merge(mine",
        "if (row < half) {\n            merge(mine",
        "norm",
    ),
    "the first value added to the deviations": (
        "batchnorm.cu",
        "in[j].v[k] - shift.v[k] - moments.mean.v[k]",
        "in[j].v[k] - moments.mean.v[k]",
        "norm",
    ),
    "no barrier before the neighbours' parts are read": (
        "lrn.cu",
        "__syncthreads();\n        for (int c = first; mine",
        "for (int c = first; mine",
        "response",
    ),
    "a channel less above": ("lrn.cu", "away <= above", "away < above", "response"),
    "an adaptive window one too wide": (
        "adaptive_avgpool.cu",
        "for (int q = left; q < right; ++q)",
        "for (int q = left; q <= right; ++q)",
        "adaptive",
    ),
    "a column too many of an image": (
        "image_batch.cu",
        "from_w < end_w;",
        "from_w <= end_w;",
        "batches",
    ),
    "a mirrored image's columns the right way round": (
        "image_batch.cu",
        "left + step * w;",
        "left + w;",
        "batches",
    ),
    "the next row taken for the next channel's": (
        "image_batch.cu",
        "if (++w == columns) {",
        "if (++w == width) {",
        "batches",
    ),
    "the slot that the device counts ignored": (
        "image_batch.cu",
        "(long long)((slot[0] + first) % slots)",
        "(long long)(first % slots)",
        "batches",
    ),
    "images that lie alike not in the middle": (
        "image_batch.cu",
        "int top = all_top,",
        "int top = 0,",
        "batches alike",
    ),
    "a channel normalised as the first": (
        "image_batch.cu",
        "values[c * 256 + pixel]",
        "values[pixel]",
        "batches",
    ),
    "Adam's shares exchanged": (
        "optim.cu",
        "v[2] += (d - v[2]) * share1;",
        "v[2] += (d - v[2]) * share2;",
        "adam",
    ),
}


USUAL = {  # in the default run: one of each sort
    "a border one too wide",
    "no barrier before a panel is read",
    "no barrier between the tile's rows and its columns",
    "no barrier in the tree of moments",
    "strides exchanged",
    "the mask the wrong way round",
    "the last tap dropped",
    "the filter transposed",
    "no guard behind the last filter",
    "a bias missing",
    "dilation ignored",
    "parts overlap by a pixel",
    "no barrier before the next row of filters",
    "a part's sums left out",
    "the last of equal maxima wins",
    "max-pool loses NaN",
    "ReLU loses NaN",
    "the tail behind the last vector cut short",
}


def chosen():
    for name in MUTATIONS:
        yield pytest.param(name, marks=() if name in USUAL else (pytest.mark.slow,))


@pytest.fixture
def mutate(monkeypatch):
    """mutate(file, old, new): from now on the checks run that file's kernels so changed."""

    def change(file, old, new):
        original = source.text(file)
        assert original.count(old) == 1, f"{old!r} occurs {original.count(old)} times in {file}"
        text = original.replace(old, new)

        @cache
        def module(name, options, check):
            return sim.Module(
                text if name == file else source.text(name), options, name=name, check=check
            )

        monkeypatch.setattr(kernel_runs, "module", module)

    return change


@pytest.mark.parametrize("name", list(chosen()))
def test_a_broken_kernel_is_noticed(mutate, name):
    file, old, new, check = MUTATIONS[name]
    mutate(file, old, new)
    with pytest.raises((AssertionError, sim.KernelError)):
        CHECKS[check]()


@pytest.mark.parametrize("name", CHECKS)
def test_the_unbroken_twin_passes(name):
    CHECKS[name]()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_of_the_text_as_it_is(name):
    """Also of those that only the long tests run."""
    file, old, new, _ = MUTATIONS[name]
    assert source.text(file).count(old) == 1
    assert old != new


def test_every_check_has_caught_something():
    assert {check for *_, check in MUTATIONS.values()} == set(CHECKS)
    assert set(MUTATIONS) >= USUAL
    assert len(USUAL) >= 10
