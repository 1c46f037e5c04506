/*
scaler.cu: loss scaling, which keeps gradients within the range of half precision.

Math      unscale: grad *= 1 / scale, and found = 1 where one is not finite then
          turn_scale: where found, skip = 1, scale /= 2 and good = 0; else skip = 0 and good += 1,
                      and after `growth` good steps in a row scale *= 2 and good = 0. Below 1 ended
                      = 1, and every step is skipped from then on. Where `stop` is 1 nothing changes
                      and skip = 1
          Numbers that depend on how many steps were not skipped, t = attempts - skipped:
          adam_numbers: step_size = lr / (1 - beta1^t), root = sqrt(1 - beta2^t), beta = 1 - share;
          momentum_numbers: share = 1 in the first of them
Source    Micikevicius et al. 2018, "Mixed precision training"; torch.amp.GradScaler
Layout    tensors, owner, part: those of clip.cu; state: scale, 1 / scale, good, skipped, ended;
          found, skip: one word each, skip being what optim.cu takes as `stop`; numbers: what
          optim.cu takes as `step`; step and stop are those of optim.cu
Geometry  unscale: one block a chunk, grid-stride over chunks; the others: one thread
Traffic   unscale: grad twice; the others nothing to speak of
Floor     8 bytes an element / DRAM bandwidth
Order     Element by element; the atomic sets a bit
Limits    2^31 - 1 chunks; offsets are 64-bit; 2^24 steps are counted exactly
Not here  Gradients of several cards
*/
#include "tensors.cuh"

constexpr int SCALE = 0, INVERSE = 1, GOOD = 2, SKIPPED = 3, ENDED = 4;

extern "C" __global__ void __launch_bounds__(256, 4)
    unscale(unsigned* __restrict__ found, const unsigned long long* __restrict__ tensors,
        const int* __restrict__ owner, const int* __restrict__ part,
        const float* __restrict__ state, int chunks)
{
    const float by = state[INVERSE];
    bool bad = false;
    for (long long i = blockIdx.x; i < chunks; i += gridDim.x) {
        const unsigned long long* tensor = tensors + (long long)owner[i] * WORDS;
        const long long begin = (long long)part[i] * CHUNK,
                        left = (long long)tensor[WORDS - 1] - begin;
        float* grad = (float*)tensor[0] + begin;
        for (int j = threadIdx.x; j < CHUNK && j < left; j += 256) {
            const float value = grad[j] * by;
            grad[j] = value;
            bad |= !isfinite(value);
        }
    }
    if (bad) atomicOr(found, 1u);
}

extern "C" __global__ void __launch_bounds__(32, 1) turn_scale(float* __restrict__ state,
    unsigned* __restrict__ found, unsigned* __restrict__ skip, const unsigned* __restrict__ stop,
    int growth)
{
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    const bool bad = found[0];
    found[0] = 0;
    skip[0] = bad || stop[0] || state[ENDED] != 0.0f;
    if (stop[0] || state[ENDED] != 0.0f) return;
    float scale = state[SCALE], good = bad ? 0.0f : state[GOOD] + 1.0f;
    if (bad) {
        scale *= 0.5f;
        state[SKIPPED] += 1.0f;
    } else if (good >= (float)growth) {
        if (isfinite(scale * 2.0f)) scale *= 2.0f;
        good = 0.0f;
    }
    state[SCALE] = scale;
    state[INVERSE] = 1.0f / scale;
    state[GOOD] = good;
    if (scale < 1.0f) state[ENDED] = 1.0f;
}

// 1 - (1 - share)^t without cancellation, however small the share.
__device__ __forceinline__ float after(float t, float share)
{
    return -expm1f(t * log1pf(-share));
}

extern "C" __global__ void __launch_bounds__(32, 1) adam_numbers(float* __restrict__ numbers,
    const float* __restrict__ state, const float* __restrict__ step, float keep, float decay,
    float share1, float beta2, float share2, float eps, float lr, float attempts)
{
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    numbers[0] = keep + step[0];
    numbers[1] = decay + step[1];
    numbers[2] = share1 += step[2];
    numbers[3] = beta2 + step[3];
    numbers[4] = share2 += step[4];
    numbers[5] = eps + step[5];
    const float t = attempts + step[7] - state[SKIPPED];
    numbers[6] = (lr + step[6]) / after(t, share1);
    numbers[7] = sqrtf(after(t, share2));
}

extern "C" __global__ void __launch_bounds__(32, 1)
    momentum_numbers(float* __restrict__ numbers, const float* __restrict__ state,
        const float* __restrict__ step, float lr, float decay, float momentum, float share,
        float attempts)
{
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    numbers[0] = lr + step[0];
    numbers[1] = decay + step[1];
    numbers[2] = momentum + step[2];
    numbers[3] = attempts + step[4] - state[SKIPPED] > 1.0f ? share + step[3] : 1.0f;
}
