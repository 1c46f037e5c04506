/*
layout.cu: between the layouts users see (NCHW images, OIHW filters) and the kernels' (NHWC, KRSC).

Math      y[b][c][r] = x[b][r][c]. NCHW to NHWC: b = N, r = C, c = H*W; OIHW to KRSC: b = K, r = C,
          c = R*S; back: the same with r and c exchanged
Source    Ruetsch and Micikevicius 2009, "Optimizing matrix transpose in CUDA"
Layout    x: STORE (batch, rows, columns); y: STORE (batch, columns, rows)
Geometry  A block of 256 threads per tile of SIDE x SIDE (VEC = 4: 64, else 32), grid-stride over
          tiles, columns fastest; through shared memory, so that reads and writes both run along
          their rows
Traffic   x and y once
Floor     8*batch*rows*columns bytes / DRAM bandwidth
Order     Each output has one owner; nothing is computed
Limits    rows, columns below 2^31; offsets are 64-bit; VEC = 4 needs rows and columns divisible by
          4
Not here  Matrices of one row or column, which need no copy; tiles for few rows (3-channel images
          use 3 rows of 32)
Macros    STORE (of arrays: float, half16 or brain16), VEC (4 or 1)
*/
#include "common.cuh"

constexpr int SIDE = VEC == 4 ? 64 : 32;

extern "C" __global__ void __launch_bounds__(256, 4)
    transpose(STORE* __restrict__ y, const STORE* __restrict__ x, long long tiles, int tiles_down,
        int tiles_across, int rows, int columns)
{
    __shared__ float tile[SIDE][SIDE + 1];
    constexpr int LANES = SIDE / VEC, LINES = 256 / LANES;
    const int along = threadIdx.x % LANES * VEC, line = threadIdx.x / LANES;
    for (long long i = blockIdx.x; i < tiles; i += gridDim.x) {
        const long long down = i / tiles_across, b = down / tiles_down;
        const int row = (int)(down - b * tiles_down) * SIDE,
                  column = (int)(i - down * tiles_across) * SIDE;
        const long long image = b * rows * columns;
        for (int r = line; r < SIDE; r += LINES)
            if (row + r < rows && column + along < columns) {
                const Floats<VEC> in =
                    load<VEC>(x + image + (long long)(row + r) * columns + column + along);
                for (int k = 0; k < VEC; ++k) tile[r][along + k] = in.v[k];
            }
        __syncthreads();
        for (int c = line; c < SIDE; c += LINES)
            if (column + c < columns && row + along < rows) {
                Floats<VEC> out;
                for (int k = 0; k < VEC; ++k) out.v[k] = tile[along + k][c];
                store_global<VEC>(y + image + (long long)(column + c) * rows + row + along, out);
            }
        __syncthreads();
    }
}
