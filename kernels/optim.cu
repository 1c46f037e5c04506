/*
optim.cu: SGD, Adam, AMSGrad, AdamW and moving averages, over all tensors of a model in one launch.

Math      d = grad + decay*p
          sgd:          p -= lr * d
          sgd_momentum: b = momentum*b + share*d;  p -= lr * b,
                        with nesterov p -= lr * (d + momentum*b)
          adam:         m += (d - m)*share1;  v = beta2*v + share2*d*d
                        p = keep*p - step_size * (m / (sqrt(v) / root + eps)); a finite d beyond
                        LIMIT counts as LIMIT, or its square would stay infinite forever
          adam_amsgrad: as adam, with the largest v so far in place of v under the root
          AdamW is adam with decay = 0 and keep = 1 - lr*weight_decay
          average:      a += (p - a)*share
          The host computes all numbers in double precision. Each is what the launch gives plus what
          `step` holds: in a recorded step the first are 0, in any other the second. stop: where it
          is 1 nothing changes
Source    gpuconv/optim/kernels.py, whose operations these are, each rounded once and none fused
          (gpuconv/cuda/source.py, OPTIONS): equal bits, subnormal numbers apart, which here become
          0; torch.optim
Layout    tensors: per tensor the addresses of p, grad and three slots (b; or m, v and the largest
          v; 0 where unused) and its count; average has a and p in place of p and grad; owner, part:
          per chunk of CHUNK elements its tensor and its number in it
Geometry  One block a chunk, grid-stride over chunks; 16-byte vectors where a tensor's arrays are
          aligned to them
Traffic   sgd: p twice, grad once; sgd_momentum: p and b twice, grad once; adam: p, m and v twice,
          grad once; adam_amsgrad: p and three slots twice, grad once; average: a twice, p once
Floor     12, 20, 28 or 36 bytes an element, average 12 / DRAM bandwidth
Order     Element by element
Limits    2^31 - 1 chunks; offsets are 64-bit
Not here  Clipping of gradients by their norm: clip.cu
*/
#include "tensors.cuh"

constexpr float LIMIT = 1.8e19f;  // its square is just below the largest float

// update(values) for each element of a chunk: values are p, grad and the slots; all but grad are
// written back.
template <int WIDTH, int ARRAYS, class F>
__device__ __forceinline__ void update_chunk(const unsigned long long* tensor, int part, F update)
{
    const long long begin = (long long)part * CHUNK, left = (long long)tensor[WORDS - 1] - begin;
    const int count = (int)min(left, (long long)CHUNK);
    for (int i = threadIdx.x * WIDTH; i < count; i += blockDim.x * WIDTH) {
        Floats<WIDTH> values[ARRAYS];
        for (int a = 0; a < ARRAYS; ++a)
            values[a] = load<WIDTH>((const float*)tensor[a] + begin + i);
        for (int k = 0; k < WIDTH; ++k) {
            float one[ARRAYS];
            for (int a = 0; a < ARRAYS; ++a) one[a] = values[a].v[k];
            update(one);
            for (int a = 0; a < ARRAYS; ++a) values[a].v[k] = one[a];
        }
        for (int a = 0; a < ARRAYS; ++a)
            if (a != 1) store<WIDTH>((float*)tensor[a] + begin + i, values[a]);
    }
}

template <int ARRAYS, class F>
__device__ __forceinline__ void update_all(const unsigned long long* tensors, const int* owner,
    const int* part, const unsigned* stop, int chunks, F update)
{
    if (stop[0]) return;
    for (long long i = blockIdx.x; i < chunks; i += gridDim.x) {
        const unsigned long long* tensor = tensors + (long long)owner[i] * WORDS;
        unsigned long long ends = tensor[WORDS - 1] * sizeof(float);
        for (int a = 0; a < ARRAYS; ++a) ends |= tensor[a];
        if (ends % 16 == 0)
            update_chunk<4, ARRAYS>(tensor, part[i], update);
        else
            update_chunk<1, ARRAYS>(tensor, part[i], update);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    sgd(const unsigned long long* __restrict__ tensors, const int* __restrict__ owner,
        const int* __restrict__ part, const float* __restrict__ step,
        const unsigned* __restrict__ stop, int chunks, float lr, float decay)
{
    lr += step[0], decay += step[1];
    update_all<2>(tensors, owner, part, stop, chunks,
        [=](float (&v)[2]) { v[0] -= lr * (v[1] + decay * v[0]); });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    sgd_momentum(const unsigned long long* __restrict__ tensors, const int* __restrict__ owner,
        const int* __restrict__ part, const float* __restrict__ step,
        const unsigned* __restrict__ stop, int chunks, float lr, float decay, float momentum,
        float share, int nesterov)
{
    lr += step[0], decay += step[1], momentum += step[2], share += step[3];
    update_all<3>(tensors, owner, part, stop, chunks, [=](float (&v)[3]) {
        const float d = v[1] + decay * v[0];
        v[2] = momentum * v[2] + share * d;
        v[0] -= lr * (nesterov ? d + momentum * v[2] : v[2]);
    });
}

// v[2] and v[3]: the running means of the gradient v[1] and of its square; v[4], in AMSGrad: the
// largest v[3] so far.
template <int ARRAYS>
__device__ __forceinline__ void adam_all(const unsigned long long* tensors, const int* owner,
    const int* part, const float* step, const unsigned* stop, int chunks, float keep, float decay,
    float share1, float beta2, float share2, float eps, float step_size, float root)
{
    keep += step[0], decay += step[1], share1 += step[2], beta2 += step[3];
    share2 += step[4], eps += step[5], step_size += step[6], root += step[7];
    update_all<ARRAYS>(tensors, owner, part, stop, chunks, [=](float (&v)[ARRAYS]) {
        float d = v[1] + decay * v[0];
        if (fabsf(d) > LIMIT && isfinite(d)) d = copysignf(LIMIT, d);
        v[2] += (d - v[2]) * share1;
        v[3] = beta2 * v[3] + share2 * (d * d);
        if (ARRAYS > 4 && !(v[3] <= v[ARRAYS - 1])) v[ARRAYS - 1] = v[3];  // NaN passes
        v[0] = keep * v[0] - step_size * (v[2] / (sqrtf(v[ARRAYS - 1]) / root + eps));
    });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    adam(const unsigned long long* __restrict__ tensors, const int* __restrict__ owner,
        const int* __restrict__ part, const float* __restrict__ step,
        const unsigned* __restrict__ stop, int chunks, float keep, float decay, float share1,
        float beta2, float share2, float eps, float step_size, float root)
{
    adam_all<4>(tensors, owner, part, step, stop, chunks, keep, decay, share1, beta2, share2, eps,
        step_size, root);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    adam_amsgrad(const unsigned long long* __restrict__ tensors, const int* __restrict__ owner,
        const int* __restrict__ part, const float* __restrict__ step,
        const unsigned* __restrict__ stop, int chunks, float keep, float decay, float share1,
        float beta2, float share2, float eps, float step_size, float root)
{
    adam_all<5>(tensors, owner, part, step, stop, chunks, keep, decay, share1, beta2, share2, eps,
        step_size, root);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    average(const unsigned long long* __restrict__ tensors, const int* __restrict__ owner,
        const int* __restrict__ part, const float* __restrict__ step,
        const unsigned* __restrict__ stop, int chunks, float share)
{
    share += step[0];
    update_all<2>(tensors, owner, part, stop, chunks,
        [=](float (&v)[2]) { v[0] += (v[1] - v[0]) * share; });
}
