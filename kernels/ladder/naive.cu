// Rung 1: one thread for each element of C.
//
// C = A B in float32. `a` is A by rows (M x K); `b` is B by columns (N x K), as the filters of a
// layer lie in memory; `c` is C by rows (M x N). M and N are multiples of 128, K of 64.
extern "C" __global__ void __launch_bounds__(1024) product_naive(
    float* c, const float* __restrict__ a, const float* __restrict__ b, int N, int K)
{
    const int row = blockIdx.y * 32 + threadIdx.y, column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) sum = fmaf(a[row * K + k], b[column * K + k], sum);
    c[row * N + column] = sum;
}
