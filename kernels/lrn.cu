/*
lrn.cu: local response normalisation across neighbouring channels, forward and backward.

Math      y[i,c]  = x[i,c] / d[i,c]^beta,
          d[i,c]  = k + a * sum of x[i,j]^2 over the channels j = c - below ... c + above
          dx[i,c] = dy[i,c] / d[i,c]^beta - slope * x[i,c] * sum of t[i,j] over the channels
                    j = c - above ... c + below, t = dy * x / d^(beta + 1), slope = 2 a beta
          a is alpha or alpha / size: the operation's two conventions
          (gpuconv/ops/local_response_norm.py)
Source    Krizhevsky et al. 2012, section 3.3; torch.nn.functional.local_response_norm
Layout    x, y, dx, dy: float32 (pixels, C)
Geometry  Blocks of 256 threads, 256/lanes pixels by `lanes` threads of VEC channels, both
          grid-stride. Backward: a pixel's t and direct part stand in shared memory between its two
          halves, 2*C floats
Traffic   Forward: x and y once; backward: dy, x and dx once; neighbours come from the cache
Floor     Forward 8, backward 12 * pixels * C bytes / DRAM bandwidth
Order     One owner per output; sums by ascending channel
Limits    pixels and C below 2^31; backward 2*C floats of shared memory at most 48 KB (checked on
          the host); offsets are 64-bit
Not here  Running sums along the channels, which would lose digits; other windows than along them
Macros    VEC (4 or 1)
*/
#include "pool.cuh"

extern __shared__ __align__(16) float shared[];  // [pixel of the block][t, direct part][channel]

// For each of VEC channels from c the sum of f(a[j]) over j = c - below ... c + above, ascending.
template <class F>
__device__ __forceinline__ Floats<VEC> window_sum(
    const float* a, int c, int C, int below, int above, F f)
{
    Floats<VEC> sum = {};
    const int first = (below + VEC - 1) / VEC, last = (above + VEC - 1) / VEC;
    for (int v = -first; v <= last; ++v) {
        const int j = c + v * VEC;
        if (j < 0 || j >= C) continue;
        const Floats<VEC> in = load<VEC>(a + j);
        for (int i = 0; i < VEC; ++i) {
            const float value = f(in.v[i]);
            for (int k = 0; k < VEC; ++k) {
                const int away = v * VEC + i - k;
                if (away >= -below && away <= above) sum.v[k] += value;
            }
        }
    }
    return sum;
}

__device__ __forceinline__ Floats<VEC> denominators(
    const float* x, int c, int C, int below, int above, float a, float k)
{
    Floats<VEC> d = window_sum(x, c, C, below, above, [](float x) { return x * x; });
    for (int i = 0; i < VEC; ++i) d.v[i] = fmaf(a, d.v[i], k);
    return d;
}

// d^-beta, by square roots for the usual 3/4.
__device__ __forceinline__ float power(float d, float beta)
{
    if (beta == 0.75f) {
        const float root = sqrtf(d);
        return 1.0f / (root * sqrtf(root));
    }
    return powf(d, -beta);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    local_response_norm_forward(float* __restrict__ y, const float* __restrict__ x, int pixels,
        int lanes, int C, int below, int above, float a, float beta, float k)
{
    for (PixelLoop at(lanes); at.pixel < pixels; at.next()) {
        const long long from = at.pixel * C;
        for (int c = at.lane * VEC; c < C; c += lanes * VEC) {
            const Floats<VEC> d = denominators(x + from, c, C, below, above, a, k);
            Floats<VEC> out = load<VEC>(x + from + c);
            for (int i = 0; i < VEC; ++i) out.v[i] *= power(d.v[i], beta);
            store_global<VEC>(y + from + c, out);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) local_response_norm_backward(
    float* __restrict__ dx, const float* __restrict__ dy, const float* __restrict__ x, int pixels,
    int lanes, int C, int below, int above, float a, float beta, float k, float slope)
{
    const int rows = blockDim.x / lanes, row = threadIdx.x / lanes,
              first = (threadIdx.x - row * lanes) * VEC;
    float *t = shared + (long long)row * 2 * C, *direct = t + C;
    // Every thread of a block makes every turn, for they meet at barriers.
    for (long long base = (long long)blockIdx.x * rows; base < pixels;
        base += (long long)gridDim.x * rows) {
        const long long from = (base + row) * C;
        const bool mine = row < rows && base + row < pixels;
        for (int c = first; mine && c < C; c += lanes * VEC) {
            const Floats<VEC> d = denominators(x + from, c, C, below, above, a, k),
                              in = load<VEC>(x + from + c);
            Floats<VEC> out = load<VEC>(dy + from + c), share;
            for (int i = 0; i < VEC; ++i) {
                out.v[i] *= power(d.v[i], beta);
                share.v[i] = out.v[i] * in.v[i] / d.v[i];
            }
            store<VEC>(direct + c, out);
            store<VEC>(t + c, share);
        }
        __syncthreads();
        for (int c = first; mine && c < C; c += lanes * VEC) {
            const Floats<VEC> around = window_sum(t, c, C, above, below, [](float t) { return t; }),
                              in = load<VEC>(x + from + c);
            Floats<VEC> out = load<VEC>(direct + c);
            for (int i = 0; i < VEC; ++i)
                out.v[i] = fmaf(-slope * in.v[i], around.v[i], out.v[i]);
            store_global<VEC>(dx + from + c, out);
        }
        __syncthreads();
    }
}
