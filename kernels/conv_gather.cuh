// conv_gather.cuh: the operands of a convolution that gathers: pixels read by a window's taps, and
// filters in the order of (tap, channel).
//
// Macros besides those of conv_simt.cuh: UNIFORM (1: a group's gathered channels are a multiple of
// TILE_K, so a panel has one tap); WINDOW_BITS (1: the window has at most 16 rows and 15 columns,
// and a bit mask says which taps are inside the image).
#pragma once
#include "conv_simt.cuh"

// An axis of the gathered image: tap t reads the pixel at start + t*step.
struct Axis {
    int size, step;

    __device__ __forceinline__ bool reaches(int start, int t) const
    {
        return (unsigned)(start + t * step) < (unsigned)size;
    }
};

// One row of the gathered operand: what one pixel of the result reads.
struct GatherRow {
    int base;  // offset of tap (0,0), perhaps outside the image, in vectors of VEC_A floats
#if WINDOW_BITS
    unsigned inside;  // bit r: the window's row r is in the image; bit 16+s: its column s is
#else
    int h, w;  // every tap is tested when it comes
#endif
};

// What the loop needs of a tap, the same for every row: its distance from tap (0,0) in vectors, and
// its bits.
struct Tap {
    int distance;
    unsigned bits;
};

// The bits of tap (r,s): none in a larger window, where a shift would leave the word.
__device__ constexpr unsigned tap_bits(int r, int s)
{
    return WINDOW_BITS ? 1u << r | 0x10000u << s : 0;
}

// With those past the last that the loop asks for.
constexpr int TAPS = WINDOW_BITS ? 16 * 15 + TILE_K : 1;
__device__ constexpr Tap NOWHERE = {0, 1u << 31};  // no row has this bit: S <= 15

// Panels of the gathered operand: TILE pixels of the result by TILE_K (tap, channel) pairs.
struct GatherLoader {
    using Shape = Along<VEC_A, TILE>;
    const float* images;  // of this group
    Axis vertical, horizontal;
    int R, S, channels, all_channels;  // channels of this group, of the image
    unsigned channels_mul;
    int channels_shift;
    Tap* taps;  // in shared memory
    GatherRow rows[Shape::ROWS];
    float v[Shape::COUNT];

    // GatherRow i reads image n, with its tap (0,0) at (h, w).
    __device__ __forceinline__ void open(int i, int n, int h, int w, bool exists)
    {
        rows[i].base = ((n * vertical.size + h) * horizontal.size + w) * (all_channels / VEC_A)
                       + (UNIFORM ? Shape::step() / VEC_A : 0);
#if WINDOW_BITS
        unsigned inside = 0;
        for (int r = 0; r < R; ++r) inside |= (unsigned)vertical.reaches(h, r) << r;
        for (int s = 0; s < S; ++s) inside |= (unsigned)horizontal.reaches(w, s) << (16 + s);
        rows[i].inside = exists ? inside : 0;
#else
        rows[i] = {rows[i].base, exists ? h : -(1 << 30), w};
#endif
    }

    __device__ __forceinline__ Tap tap_of(int tap) const
    {
        const int r = tap / S, s = tap - r * S;
        return {
            (r * vertical.step * horizontal.size + s * horizontal.step) * (all_channels / VEC_A),
            tap_bits(r, s)};
    }

    // Fills the table of taps, by all threads; a barrier must follow.
    __device__ __forceinline__ void tabulate()
    {
        for (int tap = threadIdx.x; tap < TAPS; tap += THREADS)
            taps[tap] = tap < R * S ? tap_of(tap) : NOWHERE;
    }

    __device__ __forceinline__ bool inside(const GatherRow& row, int tap, unsigned bits) const
    {
#if WINDOW_BITS
        return (row.inside & bits) == bits;
#else
        const int r = tap / S;
        return vertical.reaches(row.h, r) && horizontal.reaches(row.w, tap - r * S) && r < R;
#endif
    }

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        const int k = panel * TILE_K + (UNIFORM ? 0 : Shape::step());
        const int number = divide(k, channels_mul, channels_shift);
        const Tap tap = WINDOW_BITS ? taps[number] : tap_of(number);
        const int distance = tap.distance + (unsigned)(k - number * channels) / VEC_A;
        for (int i = 0; i < Shape::ROWS; ++i)
            fetch<VEC_A>(v, i, images + (long long)(rows[i].base + distance) * VEC_A,
                inside(rows[i], number, tap.bits));
    }

    __device__ __forceinline__ void put(float (*panel)[LD]) { Shape::put(panel, v); }
};

// Panels of the filters for a forward pass: TILE_N filters by TILE_K steps, contiguous along the
// steps.
struct FilterLoader {
    using Shape = Along<VEC_B, TILE_N>;
    const float* w;                 // of the group
    int first, filters, reduction;  // row 0's filter; filters of this group
    float v[Shape::COUNT];

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        const int k = panel * TILE_K + Shape::step();
        for (int i = 0; i < Shape::ROWS; ++i)
            fetch<VEC_B>(v, i, w + ((first + TILE_N / 4 * i) * reduction + k),
                first + TILE_N / 4 * i < filters && k < reduction);
    }

    __device__ __forceinline__ void put(float (*panel)[LD_N]) { Shape::put(panel, v); }
};
