/*
step.cu: what a recorded step of training reads and writes besides its own work.

Math      note_batch: correct = rows whose first largest score is the label's (a NaN is the
                      largest, as in NumPy); it and the loss go to the ring's row of this step.
                      Then the step turns: its numbers and seeds become those of the kernels from
                      here to its end, and the table's next row those of the next step up to here
          note_loss: a number goes to a column of the row of this step, before or after its turn
          A loss or a norm that is not finite stops: from then on these kernels do nothing, and
          kernels that are given `stop` change nothing
Source    gpuconv/cuda/recording.py
Layout    state: 8 words: stop (0 or 1), the step that turned last, and as the fifth the step;
          table: per step seeds, two words each, then floats; ring: COLUMNS floats a step (correct,
          norm, losses ...), then one that is the step that stopped, counted from 1, or 0
Geometry  One block each; note_batch: `lanes` threads a row, a power of two up to 32
Traffic   note_batch: scores and labels once, a row of the table twice
Floor     Nothing to speak of: a launch takes longer
Order     Counts are whole numbers below 2^24
Limits    rows below 2^24
Not here  Several cards
Macros    LABEL (the labels' type, an integer)
*/
#include "common.cuh"

constexpr int COLUMNS = 8, CORRECT = 0;
constexpr int STOP = 0, NOTED = 1, STEP = 4;

// By one thread.
__device__ __forceinline__ void note(
    float* ring, unsigned* state, int slots, unsigned step, int column, float value)
{
    ring[(long long)step * COLUMNS + column] = value;
    if (isfinite(value)) return;
    state[STOP] = 1;
    ring[COLUMNS * slots] = (float)(step + 1);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    note_loss(float* __restrict__ ring, unsigned* __restrict__ state,
        const float* __restrict__ loss, int column, int turned, int slots)
{
    if (blockIdx.x == 0 && threadIdx.x == 0 && !state[STOP])
        note(ring, state, slots, state[turned ? NOTED : STEP], column, loss[0]);
}

extern "C" __global__ void __launch_bounds__(256, 4) note_batch(float* __restrict__ ring,
    unsigned* __restrict__ state, unsigned long long* __restrict__ seeds,
    unsigned long long* __restrict__ later_seeds, float* __restrict__ numbers,
    float* __restrict__ later_numbers, const unsigned* __restrict__ table,
    const float* __restrict__ loss, const float* __restrict__ scores,
    const LABEL* __restrict__ labels, int rows, int classes, int lanes, int column, int slots,
    int seed_count, int number_count)
{
    __shared__ int counts[256];
    if (blockIdx.x > 0 || state[STOP]) return;
    const int lane = threadIdx.x % lanes, side = 256 / lanes;
    int correct = 0;
    for (int first = 0; first < rows; first += side) {
        const int row = first + threadIdx.x / lanes;
        // A lane without a class has class -1; NaN beats numbers, and the first of equals wins.
        float best = 0.0f;
        int at = -1;
        for (int j = lane; row < rows && j < classes; j += lanes) {
            const float x = scores[(long long)row * classes + j];
            if (at < 0 || x > best || (isnan(x) && !isnan(best))) best = x, at = j;
        }
        for (int half = lanes / 2; half > 0; half /= 2) {
            const float x = __shfl_xor_sync(0xffffffffu, best, half);
            const int j = __shfl_xor_sync(0xffffffffu, at, half);
            const bool equal = x == best || (isnan(x) && isnan(best));
            const bool larger = x > best || (isnan(x) && !isnan(best));
            if (j >= 0 && (at < 0 || larger || (equal && j < at))) best = x, at = j;
        }
        if (lane == 0 && row < rows && (long long)labels[row] == at) ++correct;
    }
    counts[threadIdx.x] = correct;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) counts[threadIdx.x] += counts[threadIdx.x + half];
    }
    const unsigned step = state[STEP];
    const unsigned* row = table + (long long)(step + 1) * (2 * seed_count + number_count);
    const bool more = step + 1 < slots;
    for (int i = threadIdx.x; i < seed_count; i += 256) {
        later_seeds[i] = seeds[i];
        if (more) seeds[i] = row[2 * i] | (unsigned long long)row[2 * i + 1] << 32;
    }
    for (int i = threadIdx.x; i < number_count; i += 256) {
        later_numbers[i] = numbers[i];
        if (more) numbers[i] = __uint_as_float(row[2 * seed_count + i]);
    }
    __syncthreads();  // all have read the step
    if (threadIdx.x > 0) return;
    if (step == 0) ring[COLUMNS * slots] = 0.0f;  // the first of some: nothing has stopped
    ring[(long long)step * COLUMNS + CORRECT] = (float)counts[0];
    state[NOTED] = step;
    state[STEP] = step + 1;
    note(ring, state, slots, step, column, loss[0]);
}
