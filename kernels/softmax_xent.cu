/*
softmax_xent.cu: softmax, cross-entropy, the article's half squared error, and the hinge loss.

Math      softmax:      y = exp(x - max x) / sum exp(x - max x);  dx = y * (dy - sum dy*y)
          cross-entropy, whose target is t[j] = w[j] * (even, plus `right` for the label), w being
                        the classes' weights, or 1 each:
                        loss = share * log sum exp(x - m) + sum t * (m - x) with share = sum t and
                        m = max x: no term is negative, so nothing cancels and scores of 1e38 do
                        not overflow;  dx = (p * share - t) / total. total, by which the mean of
                        the losses divides, is the sum of w[label] over the rows. A row whose
                        label is `ignore` has no loss, no gradient and no part in total
          half squared: loss = sum (p - t)^2 / 2;  dx = p * (d - sum p*d) / rows with d = p - t
          hinge:        excess[j] = max(0, margin - x[label] + x[j]) for j != label;
                        loss = sum excess / classes;  dx = (excess > 0) / (rows*classes), the
                        label's is minus the sum of the others'
          mean_rows:    loss = sum of row_loss[i] / rows; cross_entropy_mean: / total
          cross_entropy_and_gradient: that loss and dx
Source    The article's "training using backpropagation"; torch.nn.functional.cross_entropy,
          multi_margin_loss
Layout    Matrices: float32 (rows, classes), classes contiguous (NHWC pixels are rows); labels:
          LABEL (rows)
Geometry  A warp per row, 8 rows a block, grid-stride over rows; mean_rows, cross_entropy_mean and
          cross_entropy_total are one block; so is cross_entropy_and_gradient, a thread a row
Traffic   Forward: scores three times (the cache serves two), the matrix written once. Backward: its
          matrices once, or twice where there is a sum
Floor     8*rows*classes bytes / DRAM bandwidth (backward of softmax: 12)
Order     A lane sums every 32nd class, a butterfly the lanes; mean_rows: a thread every 256th row,
          then a tree
Limits    classes and rows: 1 to 2^31 - 1; offsets are 64-bit. A label out of range gives NaN, never
          an access out of bounds; the host refuses it where it can see it
Not here  Several warps a row, which classes by the ten thousand would want
Macros    LABEL (the labels' type, an integer)
*/
#include "common.cuh"

constexpr int WARPS = 8;

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ long long first_row()
{
    return blockIdx.x * (long long)WARPS + threadIdx.x / 32;
}
__device__ __forceinline__ long long row_step() { return gridDim.x * (long long)WARPS; }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fffffff); }

// f(j) over a row's classes: the sum, in every lane.
template <class F> __device__ __forceinline__ float sum_over(int classes, F f)
{
    float sum = 0.0f;
    for (int j = lane(); j < classes; j += 32) sum += f(j);
    return warp_sum(sum);
}

struct Softmax {
    float peak, sum;
};

// The row's largest score and sum of exp(score - peak). A NaN among the scores makes the sum NaN.
__device__ __forceinline__ Softmax softmax_of(const float* x, int classes)
{
    float peak = -1.0f / 0.0f;
    for (int j = lane(); j < classes; j += 32) peak = fmaxf(peak, x[j]);
    peak = warp_max(peak);
    return {peak, sum_over(classes, [=](int j) { return expf(x[j] - peak); })};
}

__device__ __forceinline__ void write_softmax(float* y, const float* x, int classes, Softmax s)
{
    for (int j = lane(); j < classes; j += 32) y[j] = expf(x[j] - s.peak) / s.sum;
}

extern "C" __global__ void __launch_bounds__(256, 4)
    softmax_forward(float* __restrict__ y, const float* __restrict__ x, int rows, int classes)
{
    for (long long row = first_row(); row < rows; row += row_step())
        write_softmax(
            y + row * classes, x + row * classes, classes, softmax_of(x + row * classes, classes));
}

extern "C" __global__ void __launch_bounds__(256, 4) softmax_backward(float* __restrict__ dx,
    const float* __restrict__ dy, const float* __restrict__ y, int rows, int classes)
{
    for (long long row = first_row(); row < rows; row += row_step()) {
        const long long at = row * classes;
        const float sum = sum_over(classes, [=](int j) { return dy[at + j] * y[at + j]; });
        for (int j = lane(); j < classes; j += 32) dx[at + j] = y[at + j] * (dy[at + j] - sum);
    }
}

// What a row of cross-entropy aims at.
struct Target {
    const float* weight;  // of each class; not read without use_weight
    int use_weight;
    float right, even;

    __device__ __forceinline__ float of(long long j) const { return use_weight ? weight[j] : 1.0f; }
    __device__ __forceinline__ float at(long long j, long long label) const
    {
        return of(j) * (j == label ? even + right : even);
    }
    // The sum over the classes.
    __device__ __forceinline__ float share(int classes, long long label) const
    {
        if (!use_weight) return 1.0f;
        float sum = right * weight[label];
        if (even != 0.0f) sum += even * sum_over(classes, [=](int j) { return weight[j]; });
        return sum;
    }
};

extern "C" __global__ void __launch_bounds__(256, 4)
    cross_entropy_forward(float* __restrict__ probabilities, float* __restrict__ row_loss,
        const float* __restrict__ scores, const LABEL* __restrict__ labels,
        const float* __restrict__ weight, int rows, int classes, float right, float even,
        int use_weight, long long ignore)
{
    const Target target = {weight, use_weight, right, even};
    for (long long row = first_row(); row < rows; row += row_step()) {
        const float* x = scores + row * classes;
        const long long label = labels[row];
        const bool known = label >= 0 && label < classes;
        const Softmax s = softmax_of(x, classes);
        write_softmax(probabilities + row * classes, x, classes, s);
        float loss = label == ignore ? 0.0f : not_a_number();
        if (known && label != ignore) {
            loss = target.share(classes, label) * logf(s.sum);
            const float one = target.of(label) * right;  // 0 * infinity is no loss
            if (one != 0.0f) loss += one * (s.peak - x[label]);
            if (even != 0.0f)
                loss += sum_over(classes, [=](int j) {
                    const float part = target.of(j) * even;
                    return part != 0.0f ? part * (s.peak - x[j]) : 0.0f;
                });
        }
        if (lane() == 0) row_loss[row] = loss;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    cross_entropy_backward(float* __restrict__ dscores, const float* __restrict__ probabilities,
        const LABEL* __restrict__ labels, const float* __restrict__ weight,
        const float* __restrict__ total, int rows, int classes, float right, float even,
        int use_weight, long long ignore)
{
    const Target target = {weight, use_weight, right, even};
    for (long long row = first_row(); row < rows; row += row_step()) {
        const long long at = row * classes, label = labels[row];
        const bool known = label >= 0 && label < classes;
        const float share = known ? target.share(classes, label) : 0.0f;
        for (int j = lane(); j < classes; j += 32) {
            float d = known ? (probabilities[at + j] * share - target.at(j, label)) / total[0]
                            : not_a_number();
            dscores[at + j] = label == ignore ? 0.0f : d;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    half_squared_error_forward(float* __restrict__ probabilities, float* __restrict__ row_loss,
        const float* __restrict__ scores, const LABEL* __restrict__ labels, int rows, int classes)
{
    for (long long row = first_row(); row < rows; row += row_step()) {
        const float* x = scores + row * classes;
        const long long label = labels[row];
        const Softmax s = softmax_of(x, classes);
        float* p = probabilities + row * classes;
        float sum = 0.0f;
        for (int j = lane(); j < classes; j += 32) {
            const float value = expf(x[j] - s.peak) / s.sum, d = j == label ? value - 1.0f : value;
            p[j] = value;
            sum = fmaf(d, d, sum);
        }
        sum = warp_sum(sum);
        if (lane() == 0)
            row_loss[row] = label >= 0 && label < classes ? sum / 2.0f : not_a_number();
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) half_squared_error_backward(
    float* __restrict__ dscores, const float* __restrict__ probabilities,
    const LABEL* __restrict__ labels, int rows, int classes)
{
    for (long long row = first_row(); row < rows; row += row_step()) {
        const float* p = probabilities + row * classes;
        const long long label = labels[row];
        const bool known = label >= 0 && label < classes;
        const float sum =
            sum_over(classes, [=](int j) { return p[j] * (j == label ? p[j] - 1.0f : p[j]); });
        for (int j = lane(); j < classes; j += 32) {
            const float d = j == label ? p[j] - 1.0f : p[j];
            dscores[row * classes + j] = known ? p[j] * (d - sum) / (float)rows : not_a_number();
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) hinge_forward(float* __restrict__ excess,
    float* __restrict__ row_loss, const float* __restrict__ scores,
    const LABEL* __restrict__ labels, int rows, int classes, float margin)
{
    for (long long row = first_row(); row < rows; row += row_step()) {
        const float* x = scores + row * classes;
        const long long label = labels[row];
        const float right = label >= 0 && label < classes ? x[label] : not_a_number();
        float sum = 0.0f;
        for (int j = lane(); j < classes; j += 32) {
            const float value = j == label ? 0.0f : relu(margin - right + x[j]);
            excess[row * classes + j] = value;
            sum += value;
        }
        sum = warp_sum(sum);
        if (lane() == 0) row_loss[row] = sum / (float)classes;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) hinge_backward(float* __restrict__ dscores,
    const float* __restrict__ excess, const LABEL* __restrict__ labels, int rows, int classes)
{
    for (long long row = first_row(); row < rows; row += row_step()) {
        const float* e = excess + row * classes;
        const long long label = labels[row];
        const bool known = label >= 0 && label < classes;
        const float positive = sum_over(classes, [=](int j) { return e[j] > 0.0f ? 1.0f : 0.0f; });
        for (int j = lane(); j < classes; j += 32) {
            const float d = j == label ? -positive : e[j] > 0.0f ? 1.0f : 0.0f;
            dscores[row * classes + j] =
                known ? d / ((float)rows * (float)classes) : not_a_number();
        }
    }
}

// The sum of what 256 threads have, in every thread.
__device__ __forceinline__ float block_sum(float value)
{
    __shared__ float sums[256];
    __syncthreads();  // all have read the last call's sum
    sums[threadIdx.x] = value;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}

// Each term is divided first, so that the sum cannot overflow.
__device__ __forceinline__ void write_mean(
    float* loss, const float* row_loss, int rows, float total)
{
    float sum = 0.0f;
    for (long long row = threadIdx.x; row < rows; row += 256) sum += row_loss[row] / total;
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[0] = sum;
}

__device__ __forceinline__ float total_weight(const LABEL* labels, const float* weight, int rows,
    int classes, int use_weight, long long ignore)
{
    float sum = 0.0f;
    for (long long row = threadIdx.x; row < rows; row += 256) {
        const long long label = labels[row];
        if (label == ignore || label < 0 || label >= classes) continue;
        sum += use_weight ? weight[label] : 1.0f;
    }
    return block_sum(sum);
}

// One block of 256 threads each, however many are launched.
extern "C" __global__ void __launch_bounds__(256, 4)
    mean_rows(float* __restrict__ loss, const float* __restrict__ row_loss, int rows)
{
    if (blockIdx.x == 0) write_mean(loss, row_loss, rows, (float)rows);
}

extern "C" __global__ void __launch_bounds__(256, 4) cross_entropy_mean(float* __restrict__ loss,
    const float* __restrict__ row_loss, const LABEL* __restrict__ labels,
    const float* __restrict__ weight, int rows, int classes, int use_weight, long long ignore)
{
    if (blockIdx.x > 0) return;
    const float total = total_weight(labels, weight, rows, classes, use_weight, ignore);
    write_mean(loss, row_loss, rows, total);
    // without a row that counts, 0 / 0, as PyTorch has it
    if (threadIdx.x == 0 && total == 0.0f) loss[0] = not_a_number();
}

extern "C" __global__ void __launch_bounds__(256, 4) cross_entropy_total(float* __restrict__ total,
    const LABEL* __restrict__ labels, const float* __restrict__ weight, int rows, int classes,
    int use_weight, long long ignore)
{
    if (blockIdx.x > 0) return;
    const float sum = total_weight(labels, weight, rows, classes, use_weight, ignore);
    if (threadIdx.x == 0) total[0] = sum;
}

// Loss and gradient of few rows of few classes, by one block of 256 threads.
extern "C" __global__ void __launch_bounds__(256, 4)
    cross_entropy_and_gradient(float* __restrict__ loss, float* __restrict__ dscores,
        const float* __restrict__ scores, const LABEL* __restrict__ labels,
        const float* __restrict__ weight, int rows, int classes, float right, float even,
        int use_weight, long long ignore)
{
    if (blockIdx.x > 0) return;
    const Target target = {weight, use_weight, right, even};
    const float total = total_weight(labels, weight, rows, classes, use_weight, ignore);
    float all = 1.0f;  // the target's sum, but for the label's part
    if (use_weight) {
        all = 0.0f;
        for (int j = 0; j < classes; ++j) all += even * weight[j];
    }
    float mean = 0.0f;
    for (long long row = threadIdx.x; row < rows; row += 256) {
        const float* const x = scores + row * classes;
        float* const dx = dscores + row * classes;
        const long long label = labels[row];
        const bool known = label >= 0 && label < classes, ignored = label == ignore;
        float peak = -1.0f / 0.0f, sum = 0.0f;
        for (int j = 0; j < classes; ++j) peak = fmaxf(peak, x[j]);
        for (int j = 0; j < classes; ++j) sum += expf(x[j] - peak);
        float value = ignored ? 0.0f : not_a_number(), share = 1.0f;
        if (known && !ignored) {
            if (use_weight) share = all + right * weight[label];
            value = share * logf(sum);
            for (int j = 0; j < classes; ++j) {
                const float part = target.at(j, label);
                if (part != 0.0f) value += part * (peak - x[j]);  // 0 * infinity is no loss
            }
        }
        mean += value / total;
        for (int j = 0; j < classes; ++j) {
            const float p = expf(x[j] - peak) / sum;
            const float d = known ? (p * share - target.at(j, label)) / total : not_a_number();
            dx[j] = ignored ? 0.0f : d;
        }
    }
    mean = block_sum(mean);
    if (threadIdx.x == 0) loss[0] = total == 0.0f ? not_a_number() : mean;
}
