/*
conv_simt.cu: two-dimensional convolution, forward and backward data, in IEEE float32.

Math      y[n,p,q,k]  = act(b[k] + sum over r,s,c of w[k,r,s,c] * x[n, p*stride_h - pad_h + r*dil_h,
                                                                       q*stride_w - pad_w + s*dil_w,
                                        c])
          dx[n,h,w,c] = mask * sum over r,s,k of w[k,r,s,c] * dy[n,p,q,k] where p*stride_h - pad_h +
                        r*dil_h = h and
          likewise q; act is nothing or ReLU, mask nothing or (x[n,h,w,c] > 0), the gradient of a
          ReLU that made x
          As one product per group: pixels x (R*S*channels) times (R*S*channels) x filters, never
          stored ("implicit
          GEMM"). A linear layer is the case H = W = P = Q = R = S = 1 of all three passes
Source    Chellapilla et al. 2006; cuDNN (Chetlur et al. 2014); CUTLASS, implicit GEMM
Layout    x, dx, y, dy: float32 NHWC; w: float32 KRSC with C = channels of one group; b: K
Geometry  One block of 256 threads per TILE pixels x TILE filters (forward) or channels (backward
          data) of a group: grid.x = tiles of pixels * tiles across, across fastest so that
          neighbours share x in the L2; grid.y = group. TILE = 128: 8x8 sums a thread, panels of 8;
          TILE = 64: 4x4, panels of 16. Two buffers in shared memory
Traffic   Per block: TILE*R*S*channels of each operand, and its tile of the result once
Floor     2*N*P*Q*K*R*S*C/groups flops / FP32 peak (backward data the same: a strided one multiplies
          by zeros besides)
Order     One owner per output, the sum in ascending (r,s,channel), one rounding a term: |error| <=
          gamma_(RSC+1) of the sum of absolute products. Bit-identical from run to run
Limits    N*P*Q, N*H*W, a group's filters, and x and dy in vectors of VEC_A floats below 2^31, with
          what a window reaches past the edge; checked by the plan. WINDOW_BITS = 1 needs R <= 16, S
          <= 15
Not here  Depthwise filters (depthwise.cu); strided backward data without the zeros; a split of the
          reduction, which a linear layer of few rows would want
Macros    TILE; VEC_A, VEC_B, VEC_OUT (4 or 1: gathered operand, filter, result); UNIFORM (1: a
          group's gathered channels are a multiple of TILE_K, so a panel has one tap); WINDOW_BITS.
          The scalars use_bias, rectify and use_mask choose the epilogue
*/
#include "conv_simt.cuh"

// An axis of the image that a window gathers from. Forward: pixel = start + t*dil for tap t.
// Backward data: pixel = (start - t*dil) / down where that is a whole number, down being the
// stride.
template <bool BACKWARD> struct Axis {
    int size, dil, down;
    unsigned down_mul;
    int down_shift;

    // Tap t's pixel minus tap 0's, rounded up: an image pixel where `reaches` says so.
    __device__ __forceinline__ int shift(int t) const
    {
        return BACKWARD ? -divide(t * dil, down_mul, down_shift) : t * dil;
    }

    // Whether tap t reads a pixel of the image, tap 0 being at `pixel` with remainder `odd`.
    __device__ __forceinline__ bool reaches(int pixel, int odd, int t) const
    {
        return (unsigned)(pixel + shift(t)) < (unsigned)size
               && (!BACKWARD || odd == t * dil + shift(t) * down);
    }
};

// One row of the gathered operand: what one pixel of the result reads.
struct Row {
    int base;  // offset of tap (0,0), perhaps outside the image, in vectors of VEC_A floats
#if WINDOW_BITS
    unsigned inside;  // bit r: the window's row r is in the image; bit 16+s: its column s is
#else
    int h, w, odd_h, odd_w;  // every tap is tested when it comes
#endif
};

// What the loop needs to know of a tap, the same for every row: its distance from tap (0,0) in
// floats, and its bits.
struct Tap {
    int distance;
    unsigned bits;
};

constexpr int TAPS =
    WINDOW_BITS ? 16 * 15 + TILE_K : 1;  // with those past the last that the loop asks for
__device__ constexpr Tap NOWHERE = {0, 1u << 31};  // no row has this bit: S <= 15

// Panels of the gathered operand: TILE pixels of the result by TILE_K (tap, channel) pairs.
template <bool BACKWARD> struct GatherLoader {
    using Shape = Along<VEC_A>;
    const float* images;  // of this group
    Axis<BACKWARD> vertical, horizontal;
    int R, S, channels, all_channels;  // channels of this group, of the image
    unsigned channels_mul, s_mul;
    int channels_shift, s_shift;
    Tap* taps;  // in shared memory
    Row rows[Shape::ROWS];
    float v[4];

    // Row i reads image n, with its window at (start_h, start_w).
    __device__ __forceinline__ void open(int i, int n, int start_h, int start_w, bool exists)
    {
        const int h = BACKWARD ? divide(start_h, vertical.down_mul, vertical.down_shift) : start_h;
        const int w =
            BACKWARD ? divide(start_w, horizontal.down_mul, horizontal.down_shift) : start_w;
        const int odd_h = BACKWARD ? start_h - h * vertical.down : 0;
        const int odd_w = BACKWARD ? start_w - w * horizontal.down : 0;
        rows[i].base = ((n * vertical.size + h) * horizontal.size + w) * (all_channels / VEC_A)
                       + (UNIFORM ? Shape::step() / VEC_A : 0);
#if WINDOW_BITS
        unsigned inside = 0;
        for (int r = 0; r < R; ++r) inside |= (unsigned)vertical.reaches(h, odd_h, r) << r;
        for (int s = 0; s < S; ++s) inside |= (unsigned)horizontal.reaches(w, odd_w, s) << (16 + s);
        rows[i].inside = exists ? inside : 0;
#else
        rows[i] = {rows[i].base, exists ? h : -(1 << 30), w, odd_h, odd_w};
#endif
    }

    __device__ __forceinline__ Tap tap_of(int tap) const
    {
        const int r = divide(tap, s_mul, s_shift), s = tap - r * S;
        return {
            (vertical.shift(r) * horizontal.size + horizontal.shift(s)) * (all_channels / VEC_A),
            1u << r | 0x10000u << s};
    }

    // Fills the table of taps, by all threads; a barrier must follow.
    __device__ __forceinline__ void tabulate()
    {
        for (int tap = threadIdx.x; tap < TAPS; tap += THREADS)
            taps[tap] = tap < R * S ? tap_of(tap) : NOWHERE;
    }

    __device__ __forceinline__ bool inside(const Row& row, int tap, unsigned bits) const
    {
#if WINDOW_BITS
        return (row.inside & bits) == bits;
#else
        const int r = divide(tap, s_mul, s_shift);
        return vertical.reaches(row.h, row.odd_h, r)
               && horizontal.reaches(row.w, row.odd_w, tap - r * S) && r < R;
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

// Panels of the filters for the forward pass: TILE filters by TILE_K steps, contiguous along the
// steps.
struct FilterLoader {
    using Shape = Along<VEC_B>;
    const float* w;                 // of the group
    int first, filters, reduction;  // row 0's filter; filters of this group
    float v[4];

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        const int k = panel * TILE_K + Shape::step();
        for (int i = 0; i < Shape::ROWS; ++i)
            fetch<VEC_B>(v, i, w + ((first + TILE / 4 * i) * reduction + k),
                first + TILE / 4 * i < filters && k < reduction);
    }

    __device__ __forceinline__ void put(float (*panel)[LD]) { Shape::put(panel, v); }
};

// Panels of the filters for backward data: TILE channels by TILE_K (tap, filter) pairs, contiguous
// along the channels.
struct CrossFilterLoader {
    using Shape = Across<VEC_B>;
    const float* w;                           // of the group
    int first, channels, filters, reduction;  // the first channel here
    int stride;                               // floats of one filter
    unsigned filters_mul;
    int filters_shift;
    float v[4];

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        const int k = panel * TILE_K + (UNIFORM ? 0 : Shape::step());
        const int tap = divide(k, filters_mul, filters_shift);
        const int filter = k - tap * filters + (UNIFORM ? Shape::step() : 0);
        const int from = first + filter * stride + tap * channels;
        for (int i = 0; i < Shape::ROWS; ++i)
            fetch<VEC_B>(
                v, i, w + (from + TILE / 4 * i), first + TILE / 4 * i < channels && k < reduction);
    }

    __device__ __forceinline__ void put(float (*panel)[LD]) { Shape::put(panel, v); }
};

extern "C" __global__ void __launch_bounds__(256, BLOCKS) conv2d_forward_simt(float* __restrict__ y,
    const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
    int pixels, int H, int W, int P, int Q, int R, int S, int C, int K, int channels, int filters,
    int reduction, int tiles_across, int stride_h, int stride_w, int pad_h, int pad_w, int dil_h,
    int dil_w, unsigned p_mul, int p_shift, unsigned q_mul, int q_shift, unsigned s_mul,
    int s_shift, unsigned channels_mul, int channels_shift, int use_bias, int rectify)
{
    __shared__ Panels panels;
    __shared__ Tap taps[TAPS];
    const Corner from = corner(tiles_across);
    if (from.row >= pixels || from.group * channels >= C) return;

    GatherLoader<false> a = {x + from.group * channels, {H, dil_h, 1}, {W, dil_w, 1}, R, S,
        channels, C, channels_mul, s_mul, channels_shift, s_shift, taps};
    a.tabulate();
    for (int i = 0; i < Along<VEC_A>::ROWS; ++i) {
        const int pixel = from.row + Along<VEC_A>::row(i);
        const int line = divide(pixel, q_mul, q_shift), q = pixel - line * Q;
        const int n = divide(line, p_mul, p_shift), p = line - n * P;
        a.open(i, n, p * stride_h - pad_h, q * stride_w - pad_w, pixel < pixels);
    }
    const int filter = from.column + Along<VEC_B>::row(0);
    FilterLoader f = {w + (long long)from.group * filters * reduction, filter, filters, reduction};

    __syncthreads();  // the table of taps is whole
    Sums sums = {};
    accumulate(sums, panels, a, f, (reduction + TILE_K - 1) / TILE_K);

    const Corner to = corner(tiles_across);
    y += (long long)to.row * K + to.group * filters + to.column;
    b += to.group * filters + to.column;
    each_vector<VEC_OUT>(
        sums, pixels - to.row, filters - to.column, [&](int row, int k, Floats<VEC_OUT> value) {
            for (int v = 0; v < VEC_OUT; ++v) {
                if (use_bias) value.v[v] += b[k + v];
                if (rectify) value.v[v] = relu(value.v[v]);
            }
            store<VEC_OUT>(y + (long long)row * K + k, value);
        });
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) conv2d_backward_data_simt(float* dx,
    const float* __restrict__ dy, const float* __restrict__ w, const float* x, int pixels, int H,
    int W, int P, int Q, int R, int S, int C, int K, int channels, int filters, int reduction,
    int tiles_across, int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w,
    unsigned h_mul, int h_shift, unsigned w_mul, int w_shift, unsigned s_mul, int s_shift,
    unsigned filters_mul, int filters_shift, unsigned stride_h_mul, int stride_h_shift,
    unsigned stride_w_mul, int stride_w_shift, int use_mask)
{
    __shared__ Panels panels;
    __shared__ Tap taps[TAPS];
    const Corner from = corner(tiles_across);
    if (from.row >= pixels || from.group * channels >= C) return;

    GatherLoader<true> a = {dy + from.group * filters,
        {P, dil_h, stride_h, stride_h_mul, stride_h_shift},
        {Q, dil_w, stride_w, stride_w_mul, stride_w_shift}, R, S, filters, K, filters_mul, s_mul,
        filters_shift, s_shift, taps};
    a.tabulate();
    for (int i = 0; i < Along<VEC_A>::ROWS; ++i) {
        const int pixel = from.row + Along<VEC_A>::row(i);
        const int line = divide(pixel, w_mul, w_shift), column = pixel - line * W;
        const int n = divide(line, h_mul, h_shift), h = line - n * H;
        a.open(i, n, h + pad_h, column + pad_w, pixel < pixels);
    }
    const int channel = from.column + Across<VEC_B>::row(0), stride = R * S * channels;
    CrossFilterLoader f = {w + (long long)from.group * filters * stride, channel, channels, filters,
        reduction, stride, filters_mul, filters_shift};

    __syncthreads();  // the table of taps is whole
    Sums sums = {};
    accumulate(sums, panels, a, f, (reduction + TILE_K - 1) / TILE_K);

    const Corner to = corner(tiles_across);
    const long long first = (long long)to.row * C + to.group * channels + to.column;
    each_vector<VEC_OUT>(
        sums, pixels - to.row, channels - to.column, [&](int row, int c, Floats<VEC_OUT> value) {
            const long long at = first + (long long)row * C + c;
            if (use_mask) {
                const Floats<VEC_OUT> sign = load<VEC_OUT>(x + at);
                for (int v = 0; v < VEC_OUT; ++v) value.v[v] = relu_mask(value.v[v], sign.v[v]);
            }
            store<VEC_OUT>(dx + at, value);
        });
}
