/*
conv_simt.cu: two-dimensional convolution, forward and backward data, in IEEE float32 on the ordinary cores.

Math      y[n,p,q,k]  = act(b[k] + sum over r,s,c of w[k,r,s,c] * x[n, p*stride_h - pad_h + r*dil_h,
                                                                       q*stride_w - pad_w + s*dil_w, c])
          dx[n,h,w,c] = mask * sum over r,s,k of w[k,r,s,c] * dy[n,p,q,k] where p*stride_h - pad_h + r*dil_h = h and
          likewise q; act is nothing or ReLU, mask nothing or (y_below[n,h,w,c] > 0), y_below being x itself
          As one product per group: pixels x (R*S*channels) times (R*S*channels) x filters, never stored ("implicit
          GEMM"). A linear layer is the case H = W = P = Q = R = S = 1 of all three passes
Source    Chellapilla et al. 2006; cuDNN (Chetlur et al. 2014); CUTLASS, implicit GEMM
Layout    x, dx, y, dy: float32 NHWC; w: float32 KRSC with C = channels of one group; b: K
Geometry  One block of 256 threads per TILE pixels x TILE filters (forward) or channels (backward data) of a group:
          grid.x = tiles of pixels * tiles across, across fastest so that neighbours share x in the L2; grid.y = group.
          TILE = 128: 8x8 sums a thread, panels of 8; TILE = 64: 4x4, panels of 16. Two buffers in shared memory
Traffic   Per block: TILE*R*S*channels of each operand, and its tile of the result once
Floor     2*N*P*Q*K*R*S*C/groups flops / FP32 peak (backward data the same: a strided one multiplies by zeros besides)
Order     One owner per output, the sum in ascending (r,s,channel), one rounding a term: |error| <= gamma_(RSC+1) of the
          sum of absolute products. Bit-identical from run to run
Limits    N*P*Q, N*H*W, a group's filters and one image below 2^31, also with the window's reach past its edge (backward data: with
          P, Q, K); checked by the plan; other offsets are 64-bit. WINDOW_BITS = 1 needs R, S <= 16
Not here  Depthwise filters (depthwise.cu); strided backward data without the zeros; a split of the reduction, which a
          linear layer of few rows would want
Macros    TILE; VEC_A, VEC_B, VEC_OUT (4 or 1: gathered operand, filter, result); UNIFORM (1: a group's gathered
          channels are a multiple of TILE_K, so a panel has one tap); WINDOW_BITS; BIAS, RELU (forward); MASK (backward)
*/
#include "conv_simt.cuh"

// An axis of the image that a window gathers from. Forward: pixel = start + t*dil for tap t. Backward data: pixel =
// (start - t*dil) / down where that is a whole number, down being the stride.
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
        return (unsigned)(pixel + shift(t)) < (unsigned)size && (!BACKWARD || odd == t * dil + shift(t) * down);
    }
};

// One row of the gathered operand: what one pixel of the result reads.
struct Row {
    const float* base;        // tap (0,0)'s pixel, which may lie outside the image
#if WINDOW_BITS
    unsigned inside;          // bit r: the window's row r is in the image; bit 16+s: its column s is
#else
    int h, w, odd_h, odd_w;   // every tap is tested when it comes
#endif
};

// Panels of the gathered operand: TILE pixels of the result by TILE_K (tap, channel) pairs.
template <bool BACKWARD> struct GatherLoader {
    using Shape = Along<VEC_A>;
    Axis<BACKWARD> vertical, horizontal;
    int R, S, channels, all_channels, reduction;   // channels of this group, of the image; R*S*channels
    unsigned channels_mul, s_mul;
    int channels_shift, s_shift;
    Row rows[Shape::ROWS];
    float v[4];

    // Row i reads `image` with its window at (start_h, start_w).
    __device__ __forceinline__ void open(int i, const float* image, int start_h, int start_w, bool exists)
    {
        const int h = BACKWARD ? divide(start_h, vertical.down_mul, vertical.down_shift) : start_h;
        const int w = BACKWARD ? divide(start_w, horizontal.down_mul, horizontal.down_shift) : start_w;
        const int odd_h = BACKWARD ? start_h - h * vertical.down : 0;
        const int odd_w = BACKWARD ? start_w - w * horizontal.down : 0;
        rows[i].base = image + ((long long)h * horizontal.size + w) * all_channels + (UNIFORM ? Shape::step() : 0);
#if WINDOW_BITS
        unsigned inside = 0;
        for (int r = 0; r < R; ++r) inside |= (unsigned)vertical.reaches(h, odd_h, r) << r;
        for (int s = 0; s < S; ++s) inside |= (unsigned)horizontal.reaches(w, odd_w, s) << (16 + s);
        rows[i].inside = exists ? inside : 0;
#else
        rows[i] = {rows[i].base, exists ? h : -(1 << 30), w, odd_h, odd_w};
#endif
    }

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        const int k = panel * TILE_K + (UNIFORM ? 0 : Shape::step());
        const int tap = divide(k, channels_mul, channels_shift);
        const int r = divide(tap, s_mul, s_shift), s = tap - r * S;
        const int pixel = vertical.shift(r) * horizontal.size + horizontal.shift(s);
        const int delta = pixel * all_channels + k - tap * channels;
        for (int i = 0; i < Shape::ROWS; ++i) {
#if WINDOW_BITS
            const unsigned bits = 1u << r | 0x10000u << s;
            const bool inside = (rows[i].inside & bits) == bits;
#else
            const bool inside = vertical.reaches(rows[i].h, rows[i].odd_h, r)
                             && horizontal.reaches(rows[i].w, rows[i].odd_w, s);
#endif
            fetch<VEC_A>(v, i, rows[i].base + delta, inside && k < reduction);
        }
    }

    __device__ __forceinline__ void put(float (*panel)[LD]) { Shape::put(panel, v); }
};

// Panels of the filters for the forward pass: TILE filters by TILE_K steps, contiguous along the steps.
struct FilterLoader {
    using Shape = Along<VEC_B>;
    const float* base;                             // of row 0
    int first, filters, reduction;                 // row 0's filter; filters of this group
    float v[4];

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        const int k = panel * TILE_K + Shape::step();
        for (int i = 0; i < Shape::ROWS; ++i)
            fetch<VEC_B>(v, i, base + (long long)(TILE / 4 * i) * reduction + k,
                         first + TILE / 4 * i < filters && k < reduction);
    }

    __device__ __forceinline__ void put(float (*panel)[LD]) { Shape::put(panel, v); }
};

// Panels of the filters for backward data: TILE channels by TILE_K (tap, filter) pairs, contiguous along the channels.
struct CrossFilterLoader {
    using Shape = Across<VEC_B>;
    const float* w;                                // of the group
    int first, channels, filters, reduction, stride; // the first channel here; stride: floats of one filter
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
            fetch<VEC_B>(v, i, w + (from + TILE / 4 * i), first + TILE / 4 * i < channels && k < reduction);
    }

    __device__ __forceinline__ void put(float (*panel)[LD]) { Shape::put(panel, v); }
};

extern "C" __global__ void __launch_bounds__(256, TILE == 64 && VEC_A == 4 ? 3 : 2) conv2d_forward_simt(
    float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
    int pixels, int H, int W, int P, int Q, int R, int S, int C, int K, int channels, int filters, int reduction, int tiles_across,
    int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w,
    unsigned p_mul, int p_shift, unsigned q_mul, int q_shift, unsigned s_mul, int s_shift,
    unsigned channels_mul, int channels_shift)
{
    __shared__ Panels panels;
    const int group = blockIdx.y;
    const int first_pixel = blockIdx.x / tiles_across * TILE, first_filter = blockIdx.x % tiles_across * TILE;
    if (first_pixel >= pixels || group * channels >= C) return;

    GatherLoader<false> a = {{H, dil_h, 1}, {W, dil_w, 1}, R, S, channels, C, reduction,
                             channels_mul, s_mul, channels_shift, s_shift};
    for (int i = 0; i < Along<VEC_A>::ROWS; ++i) {
        const int pixel = first_pixel + Along<VEC_A>::row(i);
        const int line = divide(pixel, q_mul, q_shift), q = pixel - line * Q;
        const int n = divide(line, p_mul, p_shift), p = line - n * P;
        const float* image = x + (long long)n * H * W * C + group * channels;
        a.open(i, image, p * stride_h - pad_h, q * stride_w - pad_w, pixel < pixels);
    }
    const int filter = first_filter + Along<VEC_B>::row(0);
    FilterLoader f = {w + ((long long)group * filters + filter) * reduction, filter, filters, reduction};

    Sums sums = {};
    accumulate(sums, panels, a, f, (reduction + TILE_K - 1) / TILE_K);

    y += (long long)first_pixel * K + group * filters + first_filter;
    if (BIAS) b += group * filters + first_filter;
    each_vector<VEC_OUT>(sums, pixels - first_pixel, filters - first_filter, [&](int row, int k, Floats<VEC_OUT> value) {
        for (int v = 0; v < VEC_OUT; ++v) {
            if (BIAS) value.v[v] += b[k + v];
            if (RELU) value.v[v] = relu(value.v[v]);
        }
        store<VEC_OUT>(y + (long long)row * K + k, value);
    });
}

extern "C" __global__ void __launch_bounds__(256, TILE == 64 && VEC_A == 4 ? 3 : 2) conv2d_backward_data_simt(
    float* dx, const float* __restrict__ dy, const float* __restrict__ w, const float* x,
    int pixels, int H, int W, int P, int Q, int R, int S, int C, int K, int channels, int filters, int reduction, int tiles_across,
    int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w,
    unsigned h_mul, int h_shift, unsigned w_mul, int w_shift, unsigned s_mul, int s_shift,
    unsigned filters_mul, int filters_shift,
    unsigned stride_h_mul, int stride_h_shift, unsigned stride_w_mul, int stride_w_shift)
{
    __shared__ Panels panels;
    const int group = blockIdx.y;
    const int first_pixel = blockIdx.x / tiles_across * TILE, first_channel = blockIdx.x % tiles_across * TILE;
    if (first_pixel >= pixels || group * channels >= C) return;

    GatherLoader<true> a = {{P, dil_h, stride_h, stride_h_mul, stride_h_shift},
                            {Q, dil_w, stride_w, stride_w_mul, stride_w_shift},
                            R, S, filters, K, reduction, filters_mul, s_mul, filters_shift, s_shift};
    for (int i = 0; i < Along<VEC_A>::ROWS; ++i) {
        const int pixel = first_pixel + Along<VEC_A>::row(i);
        const int line = divide(pixel, w_mul, w_shift), column = pixel - line * W;
        const int n = divide(line, h_mul, h_shift), h = line - n * H;
        const float* image = dy + (long long)n * P * Q * K + group * filters;
        a.open(i, image, h + pad_h, column + pad_w, pixel < pixels);
    }
    const int channel = first_channel + Across<VEC_B>::row(0), stride = R * S * channels;
    CrossFilterLoader f = {w + (long long)group * filters * stride, channel, channels, filters, reduction,
                           stride, filters_mul, filters_shift};

    Sums sums = {};
    accumulate(sums, panels, a, f, (reduction + TILE_K - 1) / TILE_K);

    const long long first = (long long)first_pixel * C + group * channels + first_channel;
    each_vector<VEC_OUT>(sums, pixels - first_pixel, channels - first_channel, [&](int row, int c, Floats<VEC_OUT> value) {
        const long long at = first + (long long)row * C + c;
        if (MASK) {
            const Floats<VEC_OUT> sign = load<VEC_OUT>(x + at);
            for (int v = 0; v < VEC_OUT; ++v) value.v[v] = relu_mask(value.v[v], sign.v[v]);
        }
        store<VEC_OUT>(dx + at, value);
    });
}
