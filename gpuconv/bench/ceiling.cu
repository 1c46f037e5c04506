/*
ceiling.cu: as many multiply-adds as a card can do, to hold other kernels' rates against.

Math      v = v * a + b, CHAINS independent chains a thread, rounds * UNROLL times
Geometry  256 threads a block, one float out for each thread
Traffic   4 bytes written a thread: nothing
Floor     2 * threads * rounds * UNROLL * CHAINS flops / the card's FP32 rate
Limits    rounds * UNROLL below 2^31
Not here  Tensor cores
*/
#define CHAINS 8
#define UNROLL 16

extern "C" __global__ void __launch_bounds__(256) fma_ceiling(
    float* out, float a, float b, int rounds)
{
    float v[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) v[i] = (float)(threadIdx.x + i);
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
        for (int step = 0; step < UNROLL; ++step) {
#pragma unroll
            for (int i = 0; i < CHAINS; ++i) v[i] = fmaf(v[i], a, b);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) sum += v[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
