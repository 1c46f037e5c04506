/*
clip.cu: clipping of all gradients of a model by their joint norm.

Math      square_sums: partials[chunk] = sum of grad^2;  clip_factor: norm = sqrt(sum of partials),
          factor = (min(1, max_norm / (norm + 1e-6)) or NaN, norm);  clip: grad *= factor[0]
Source    Pascanu et al. 2013, "On the difficulty of training recurrent neural networks";
          torch.nn.utils.clip_grad_norm_
Layout    tensors, owner, part: those of optim.cu, with grad's address in the first place
Geometry  One block a chunk, grid-stride over chunks; clip_factor is one block
Traffic   square_sums: grad once; clip: grad twice, or nothing where the factor is 1
Floor     12 or 4 bytes an element / DRAM bandwidth
Order     A thread sums every 256th element of a chunk, then a tree; the chunks the same way. In
          double precision: squares of float reach 1e77
Limits    2^31 - 1 chunks; offsets are 64-bit. A norm of NaN makes all gradients NaN
Not here  Gradients of several cards
*/
#include "tensors.cuh"

// The sum of what 256 threads have, in thread 0.
__device__ __forceinline__ double block_sum(double value)
{
    __shared__ double sums[256];
    sums[threadIdx.x] = value;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}

extern "C" __global__ void __launch_bounds__(256, 4)
    square_sums(double* __restrict__ partials, const unsigned long long* __restrict__ tensors,
        const int* __restrict__ owner, const int* __restrict__ part, int chunks)
{
    for (long long i = blockIdx.x; i < chunks; i += gridDim.x) {
        const unsigned long long* tensor = tensors + (long long)owner[i] * WORDS;
        const long long begin = (long long)part[i] * CHUNK,
                        left = (long long)tensor[WORDS - 1] - begin;
        const float* grad = (const float*)tensor[0] + begin;
        double sum = 0.0;
        for (int j = threadIdx.x; j < CHUNK && j < left; j += 256)
            sum += (double)grad[j] * (double)grad[j];
        sum = block_sum(sum);
        if (threadIdx.x == 0) partials[i] = sum;
        __syncthreads();  // all have read the sum
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    clip_factor(double* __restrict__ norm, float* __restrict__ factor,
        const double* __restrict__ partials, int chunks, double max_norm)
{
    if (blockIdx.x > 0) return;
    double sum = 0.0;
    for (int i = threadIdx.x; i < chunks; i += 256) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    norm[0] = sqrt(sum);
    const double share = max_norm / (norm[0] + 1e-6);
    factor[0] = share >= 1.0 ? 1.0f : (float)share;
    factor[1] = (float)norm[0];
}

extern "C" __global__ void __launch_bounds__(256, 4)
    clip(const unsigned long long* __restrict__ tensors, const int* __restrict__ owner,
        const int* __restrict__ part, const float* __restrict__ factor, int chunks)
{
    const float by = factor[0];
    if (by >= 1.0f) return;  // a NaN passes
    for (long long i = blockIdx.x; i < chunks; i += gridDim.x) {
        const unsigned long long* tensor = tensors + (long long)owner[i] * WORDS;
        const long long begin = (long long)part[i] * CHUNK,
                        left = (long long)tensor[WORDS - 1] - begin;
        float* grad = (float*)tensor[0] + begin;
        for (int j = threadIdx.x; j < CHUNK && j < left; j += 256) grad[j] *= by;
    }
}
