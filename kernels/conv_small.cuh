// conv_small.cuh: what the passes of small convolutions share: a part of an image with all its
// channels lies in shared memory, and a thread owns a patch of 2x2 pixels of the result.
//
// Macros: R, S (the window's rows and columns).
#pragma once
#include "common.cuh"

constexpr int COLUMNS = (S + 2) / 2 * 2;  // that a patch reads: S + 1, in pairs

// Floats from one group of WIDTH filters to the next: where a load of 16 or 8 bytes is aligned.
__device__ constexpr int padded(int width)
{
    return width <= 2 ? width : (width + 3) / 4 * 4;
}

// A group's WIDTH floats in shared memory, with those behind them that are padding.
template <int WIDTH>
__device__ __forceinline__ void load_group(float (&to)[WIDTH], const float* from)
{
    constexpr int VECTOR = WIDTH > 2 ? 4 : WIDTH;
    for (int i = 0; i < WIDTH; i += VECTOR) {
        const Floats<VECTOR> some = load<VECTOR>(from + i);
        for (int v = 0; v < VECTOR && i + v < WIDTH; ++v) to[i + v] = some.v[v];
    }
}

// The padding of `groups` groups is read too.
template <int WIDTH> __device__ __forceinline__ void clear_padding(float* to, int groups)
{
    constexpr int PADDING = padded(WIDTH) - WIDTH;
    if constexpr (PADDING > 0)
        for (int i = threadIdx.x; i < groups * PADDING; i += blockDim.x)
            to[i / PADDING * padded(WIDTH) + WIDTH + i % PADDING] = 0.0f;
}

__device__ __forceinline__ void load_pairs(float (&to)[COLUMNS], const float* from)
{
    for (int i = 0; i < COLUMNS; i += 2) {
        const Floats<2> two = load<2>(from + i);
        to[i] = two.v[0];
        to[i + 1] = two.v[1];
    }
}

// A part of one image in memory, channels last or first.
struct Image {
    int H, W, channel, pixel;  // floats from a channel and from a pixel to the next

    __device__ __forceinline__ bool has(int h, int w) const
    {
        return (unsigned)h < (unsigned)H && (unsigned)w < (unsigned)W;
    }
    __device__ __forceinline__ long long at(long long n, int channels, int c, int h, int w) const
    {
        return n * channels * H * W + c * channel + (h * W + w) * pixel;
    }
};

// The numbers by which a staged element's place is found.
struct Region {
    int images, rows, pitch;  // [image][channel][row][column]
    unsigned pitch_mul, rows_mul, channels_mul;
    int pitch_shift, rows_shift, channels_shift;
};

// to = `region` of images from `first` on: value(n, c, h, w), or 0 outside the image. The region
// begins at (top, left) of each.
template <class Value>
__device__ __forceinline__ void stage(float* to, const Region& region, int first, int N,
    int channels, int top, int left, const Image& image, Value value)
{
    const int count = region.images * channels * region.rows * region.pitch;
#pragma unroll 4  // loads in flight
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int line = divide(i, region.pitch_mul, region.pitch_shift);
        const int plane = divide(line, region.rows_mul, region.rows_shift);
        const int n = divide(plane, region.channels_mul, region.channels_shift);
        const int h = top + line - plane * region.rows, w = left + i - line * region.pitch;
        const bool inside = image.has(h, w) && first + n < N;
        to[i] = inside ? value(first + n, plane - n * channels, h, w) : 0.0f;
    }
}

// sums[i][j][k] += the window at row i, column j of the patch times filter k, ascending (channel,
// r, s): `in` is the patch's first element of channel 0, `filters` are [channel][r][s][filter].
template <int WIDTH>
__device__ __forceinline__ void accumulate(float (&sums)[2][2][WIDTH], const float* in,
    const float* filters, int channels, int plane, int pitch, int tap)
{
#pragma unroll 1
    for (int c = 0; c < channels; ++c, in += plane, filters += R * S * tap) {
        float above[COLUMNS], below[COLUMNS];
        load_pairs(above, in);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            load_pairs(below, in + (r + 1) * pitch);
#pragma unroll
            for (int s = 0; s < S; ++s) {
                float f[WIDTH];
                load_group(f, filters + (r * S + s) * tap);
                for (int j = 0; j < 2; ++j)
                    for (int k = 0; k < WIDTH; ++k) {
                        sums[0][j][k] = fmaf(above[s + j], f[k], sums[0][j][k]);
                        sums[1][j][k] = fmaf(below[s + j], f[k], sums[1][j][k]);
                    }
            }
            for (int i = 0; i < COLUMNS; ++i) above[i] = below[i];
        }
    }
}

// A thread's patch: which image of the block, group of filters, and cell of 2x2 pixels.
struct Patch {
    int row, column, image, group;

    __device__ __forceinline__ Patch(int item, int columns, int rows, int images)
    {
        const int line = item / columns, all = line / rows;
        column = item - line * columns;
        row = line - all * rows;
        group = all / images;
        image = all - group * images;
    }
};
