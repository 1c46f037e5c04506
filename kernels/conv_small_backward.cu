/*
conv_small_backward.cu: the gradients of conv_small.cu's convolution, in one launch: through max
pooling and ReLU to the input, the filters and the bias.

Math      g[n,p,q,k]  = the gradient of the convolution's sums: dy, with use_mask 0 where y <= 0; or
                        with pooling dy[n, p/2, q/2, k] where that window's argmax is at (p,q) and
                        its y is above 0 or NaN, else 0
          dx[n,h,w,c] = sum over k,r,s of w[k,r,s,c] * g[n,p,q,k], p = h + pad_h - r,
                        q = w + pad_w - s; plus onto[n,h,w,c] (use_onto); then 0 where x <= 0
                        (rectify): the gradient of a ReLU that made x
          dw[k,r,s,c] = sum over n,p,q of g[n,p,q,k] * x[n,h,w,c];  db[k] = sum over n,p,q of g
Source    As conv_small.cu; the sums over blocks: last_block.cuh
Layout    x, dy, y: float32, argmax: uint8, each NHWC or NCHW (y and argmax alike); dx, onto:
          NHWC; w, dw: float32 KRSC; db: K; partials: [block of filters][slice][dw and db, padded to
          4]; tickets: for each block of filters one a group of slices, and one
Geometry  The first `data_blocks` blocks compute dx, as conv_small.cu does y, from g and the filters
          turned by 180 degrees. The others compute dw and db: a block for each FILTERS filters
          (fastest) and slice of the units; a unit is a band of `rows` rows of g of `images` images.
          A thread has FILTERS filters by the S taps of one filter row and channel, for every
          `parts`-th row of a unit: for two pixels of a row it reads S + 1 of x and 2 * FILTERS of g
          from shared memory, for 2 * S * FILTERS multiply-adds
Traffic   dx: dy, y and argmax for each block of channels. dw: those and x for each block of
          filters; the slices' partial sums written, read, and a part of them again
Floor     4*N*P*Q*K*R*S*C flops / FP32 peak, half of it without dx
Order     dx: ascending (k,r,s): gamma_(RSK). dw: a part's rows and pixels, the parts, the slices of
          a group, the groups, each ascending: a product meets at most as many roundings as there
          are pixels, so gamma_(NPQ+1). Where all is split follows from the shape alone
Limits    As conv_small.cu; pad_h < R, pad_w < S; C * R <= 256
Not here  The zeros of g under max pooling, of which three in four multiply
Macros    R, S; FILTERS (of a thread's dw), CHANNELS (of a thread's dx), 1 to 8 each
*/
#include "conv_small.cuh"
#include "last_block.cuh"

extern __shared__ __align__(16) float shared[];

// g above, brought by cells of 2x2 pixels, since a pool's window is one.
struct Gradient {
    const float *dy, *y;
    const unsigned char* argmax;
    Image dy_image, y_image;  // of the pooled size where there is pooling
    int K, P, Q, pool, use_mask;

    // The cell of filter k whose first pixel, of even row and column, is (p,q).
    __device__ __forceinline__ void cell(float (&v)[4], int n, int k, int p, int q) const
    {
        if (pool) {
            if (p < 0 || q < 0 || !y_image.has(p / 2, q / 2)) return;
            const long long at = y_image.at(n, K, k, p / 2, q / 2);
            const float d = dy[dy_image.at(n, K, k, p / 2, q / 2)], sign = y[at];
            const int tap = argmax[at];
            for (int t = 0; t < 4; ++t) v[t] = t == tap ? relu_mask(d, sign) : 0.0f;
        } else
            for (int t = 0; t < 4; ++t) {
                const int row = p + t / 2, column = q + t % 2;
                if (!dy_image.has(row, column)) continue;
                v[t] = dy[dy_image.at(n, K, k, row, column)];
                if (use_mask) v[t] = relu_mask(v[t], y[y_image.at(n, K, k, row, column)]);
            }
    }
};

// Cells of 2x2 pixels, [image][filter][row][column].
struct Cells {
    int images, filters, rows, columns;
    unsigned filters_mul, rows_mul, columns_mul;
    int filters_shift, rows_shift, columns_shift;
};

// put(image, filter, row, column, g) for the rows x columns pixels from (p0,q0) of g on, 0 outside:
// images from n0, filters from k0 on.
template <class Put>
__device__ __forceinline__ void stage_gradient(const Gradient& g, const Cells& cells, int n0, int N,
    int k0, int p0, int q0, int rows, int columns, Put put)
{
    const int count = cells.images * cells.filters * cells.rows * cells.columns;
#pragma unroll 2  // loads in flight
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int line = divide(i, cells.columns_mul, cells.columns_shift);
        const int plane = divide(line, cells.rows_mul, cells.rows_shift);
        const int n = divide(plane, cells.filters_mul, cells.filters_shift);
        const int k = plane - n * cells.filters;
        const int p = (p0 & ~1) + 2 * (line - plane * cells.rows);
        const int q = (q0 & ~1) + 2 * (i - line * cells.columns);
        float v[4] = {};
        if (n0 + n < N && k0 + k < g.K) g.cell(v, n0 + n, k0 + k, p, q);
        for (int t = 0; t < 4; ++t) {
            const int row = p - p0 + t / 2, column = q - q0 + t % 2;
            if ((unsigned)row < (unsigned)rows && (unsigned)column < (unsigned)columns)
                put(n, k, row, column, v[t]);
        }
    }
}

// Where and what the blocks of dx are.
struct DataPart {
    int rows, pitch, in_rows;              // of dx, of the staged g
    int bands, splits, channels, columns;  // channels of a block; columns of patches
    unsigned channels_mul;
    int channels_shift;
};

__device__ __forceinline__ void backward_data(float* dx, const float* onto, const float* x,
    const float* w, const Gradient& g, const Cells& cells, const DataPart& part, const Image& image,
    int block, int N, int C, int top, int left, int use_onto, int rectify)
{
    const int K = g.K, channels = part.channels, images = cells.images;
    const int down = block / part.splits, first = (block - down * part.splits) * channels;
    const int group = down / part.bands, h0 = (down - group * part.bands) * part.rows;
    const int groups = channels / CHANNELS, tap = groups * padded(CHANNELS), n0 = group * images;
    float* const weights = shared;
    float* const in = shared + K * R * S * tap;

    clear_padding<CHANNELS>(weights, K * R * S * groups);
#pragma unroll 4
    for (int i = threadIdx.x; i < K * R * S * channels; i += blockDim.x) {
        const int place = divide(i, part.channels_mul, part.channels_shift);  // (k,r,s) in order
        const int c = i - place * channels, k = place / (R * S);
        const int turned = R * S - 1 - (place - k * (R * S));
        weights[(k * (R * S) + turned) * tap + c / CHANNELS * padded(CHANNELS) + c % CHANNELS] =
            first + c < C ? w[(long long)place * C + first + c] : 0.0f;
    }
    const int pitch = part.pitch, plane = part.in_rows * pitch;
    stage_gradient(g, cells, n0, N, 0, h0 - top, -left, part.in_rows, pitch,
        [&](int n, int k, int row, int column, float v) {
            in[(n * K + k) * plane + row * pitch + column] = v;
        });
    __syncthreads();

    const int items = images * (part.rows / 2) * part.columns * groups;
#pragma unroll 1
    for (int item = threadIdx.x; item < items; item += blockDim.x) {
        const Patch patch(item, part.columns, part.rows / 2, images);
        float sums[2][2][CHANNELS] = {};
        accumulate<CHANNELS>(sums,
            in + patch.image * K * plane + 2 * patch.row * pitch + 2 * patch.column,
            weights + patch.group * padded(CHANNELS), K, plane, pitch, tap);
        const int n = n0 + patch.image, mine = first + patch.group * CHANNELS;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
            const int h = h0 + 2 * patch.row + t / 2, at = 2 * patch.column + t % 2;
            if (n >= N || !image.has(h, at)) continue;
            const long long to = (((long long)n * image.H + h) * image.W + at) * C + mine;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                if (mine + c >= C) continue;
                float value = sums[t / 2][t % 2][c];
                if (use_onto) value += onto[to + c];
                if (rectify) value = relu_mask(value, x[image.at(n, C, mine + c, h, at)]);
                dx[to + c] = value;
            }
        }
    }
}

// Where and what the blocks of dw are: a block has FILTERS filters of one slice.
struct WeightPart {
    int rows, bands, tiles, parts, wide;  // wide: columns of g, an even number
    int units, length, slices, together;  // units of a slice; slices that are summed at first
};

// The sums of one block's slice; then, in the last of the slices' blocks, dw and db.
__device__ __forceinline__ void backward_weight(float* dw, float* db, float* partials,
    unsigned* tickets, const float* x, const Gradient& g, const Cells& cells, const Image& image,
    const Region& region, const WeightPart& of, int block, int N, int C, int pad_h, int pad_w,
    int use_bias)
{
    constexpr int TAP = padded(FILTERS);
    const int slice = block / of.tiles, tile = block - slice * of.tiles, k0 = tile * FILTERS;
    const int images = region.images, plane = region.rows * region.pitch, rows = of.rows;
    // Gradients first: read by vectors of 16 bytes, which would not be aligned behind the images.
    float* const gradients = shared;                           // [image][row][column][filter]
    float* const in = shared + images * rows * of.wide * TAP;  // [image][channel][row][column]

    const int columns = C * R, column = threadIdx.x % columns, part = threadIdx.x / columns;
    const int c = column / R, r = column - c * R;
    const int slot = threadIdx.x % FILTERS, lane = threadIdx.x / FILTERS;  // of the bias
    const int lanes = blockDim.x / FILTERS;
    float sums[S][FILTERS] = {}, bias = 0.0f;
    const int last = min((slice + 1) * of.length, of.units);
#pragma unroll 1
    for (int unit = slice * of.length; unit < last; ++unit) {
        const int group = unit / of.bands, n0 = group * images;
        const int p0 = (unit - group * of.bands) * rows, pixels = images * rows * of.wide;
        stage(in, region, n0, N, C, p0 - pad_h, -pad_w, image,
            [&](int n, int c, int h, int w) { return x[image.at(n, C, c, h, w)]; });
        clear_padding<FILTERS>(gradients, pixels);
        stage_gradient(g, cells, n0, N, k0, p0, 0, rows, of.wide,
            [&](int n, int k, int row, int column, float v) {
                gradients[((n * rows + row) * of.wide + column) * TAP + k] = v;
            });
        __syncthreads();
        if (part < of.parts)
#pragma unroll 1
            for (int line = part; line < images * rows; line += of.parts) {
                const int n = line / rows, p = line - n * rows;
                if (p0 + p >= g.P) continue;
                const float* from = in + (n * C + c) * plane + (p + r) * region.pitch;
                const float* d = gradients + line * of.wide * TAP;
#pragma unroll 2
                for (int q = 0; q < of.wide; q += 2, from += 2, d += 2 * TAP) {
                    float v[COLUMNS], left[FILTERS], right[FILTERS];
                    load_pairs(v, from);
                    load_group(left, d);
                    load_group(right, d + TAP);
                    for (int s = 0; s < S; ++s)
                        for (int k = 0; k < FILTERS; ++k) {
                            sums[s][k] = fmaf(left[k], v[s], sums[s][k]);
                            sums[s][k] = fmaf(right[k], v[s + 1], sums[s][k]);
                        }
                }
            }
        if (use_bias && lane < lanes)
            for (int pixel = lane; pixel < pixels; pixel += lanes)
                bias += gradients[pixel * TAP + slot];
        __syncthreads();
    }

    // The parts in ascending order, to a partial result in dw's order, db behind it.
    for (int s = 0; s < S; ++s)
        for (int k = 0; k < FILTERS; ++k)
            shared[(s * FILTERS + k) * blockDim.x + threadIdx.x] = sums[s][k];
    const int count = FILTERS * R * S * C, size = (count + FILTERS + 3) / 4 * 4;
    float* const of_tile = partials + (long long)tile * of.slices * size;
    float* const to = of_tile + (long long)slice * size;
    __syncthreads();
    for (int i = threadIdx.x; i < columns * S * FILTERS; i += blockDim.x) {
        const int j = i / columns, from = i - j * columns, channel = from / R;
        float sum = 0.0f;
        for (int other = 0; other < of.parts; ++other)
            sum += shared[j * blockDim.x + other * columns + from];
        to[((j % FILTERS * R + from - channel * R) * S + j / FILTERS) * C + channel] = sum;
    }
    __syncthreads();
    shared[threadIdx.x] = bias;
    __syncthreads();
    if (threadIdx.x < size - count) {
        float sum = 0.0f;
        for (int other = 0; other < lanes && threadIdx.x < FILTERS; ++other)
            sum += shared[other * FILTERS + threadIdx.x];
        to[count + threadIdx.x] = sum;
    }

    tickets += tile * ((of.slices + of.together - 1) / of.together + 1);
    sum_by_last_block(of_tile, tickets, slice, of.slices, of.together, size,
        [&](int i, const Floats<4>& sum) {
            for (int v = 0; v < 4; ++v) {
                const int at = i + v, k = k0 + (at < count ? at / (R * S * C) : at - count);
                if (at >= count + FILTERS || k >= g.K) continue;
                if (at < count)
                    dw[(long long)k0 * R * S * C + at] = sum.v[v];
                else if (use_bias)
                    db[k] = sum.v[v];
            }
        });
}

extern "C" __global__ void __launch_bounds__(256, 2) conv2d_backward_small(float* __restrict__ dx,
    float* __restrict__ dw, float* __restrict__ db, float* partials, unsigned* tickets,
    const float* __restrict__ dy, const float* __restrict__ y,
    const unsigned char* __restrict__ argmax, const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ onto, int N, int C, int H, int W, int K,
    int P, int Q, int PP, int PQ,
    int pad_h, int pad_w, int dy_channel, int dy_pixel, int y_channel, int y_pixel, int x_channel,
    int x_pixel, int pool, int use_mask, int use_bias, int use_onto, int rectify, unsigned C_mul,
    int C_shift, unsigned K_mul,
    int K_shift, int data_blocks, int data_images, int data_rows, int data_bands, int data_splits,
    int channels, unsigned channels_mul, int channels_shift, int columns, int data_pitch,
    int data_in_rows, int data_cells_h, int data_cells_w, unsigned data_cells_h_mul,
    int data_cells_h_shift, unsigned data_cells_w_mul, int data_cells_w_shift, int images, int rows,
    int bands, int tiles, int parts, int pitch, int in_rows, unsigned pitch_mul, int pitch_shift,
    unsigned in_rows_mul, int in_rows_shift, int wide, unsigned cells_h_mul, int cells_h_shift,
    unsigned cells_w_mul, int cells_w_shift, unsigned filters_mul, int filters_shift, int units,
    int length, int slices, int together)
{
    const int PY = pool ? PP : P, QY = pool ? PQ : Q;
    const Gradient g = {dy, y, argmax, {PY, QY, dy_channel, dy_pixel}, {PY, QY, y_channel, y_pixel},
        K, P, Q, pool, use_mask};
    if ((int)blockIdx.x < data_blocks) {
        const Cells cells = {data_images, K, data_cells_h, data_cells_w, K_mul, data_cells_h_mul,
            data_cells_w_mul, K_shift, data_cells_h_shift, data_cells_w_shift};
        const DataPart part = {data_rows, data_pitch, data_in_rows, data_bands, data_splits,
            channels, columns, channels_mul, channels_shift};
        backward_data(dx, onto, x, w, g, cells, part, {H, W, x_channel, x_pixel}, blockIdx.x, N, C,
            R - 1 - pad_h, S - 1 - pad_w, use_onto, rectify);
    } else {
        const Cells cells = {images, FILTERS, rows / 2, wide / 2, filters_mul, cells_h_mul,
            cells_w_mul, filters_shift, cells_h_shift, cells_w_shift};
        const Region region = {images, in_rows, pitch, pitch_mul, in_rows_mul, C_mul, pitch_shift,
            in_rows_shift, C_shift};
        const WeightPart part = {
            rows, bands, tiles, parts, wide, units, length, slices, together};
        backward_weight(dw, db, partials, tickets, x, g, cells, {H, W, x_channel, x_pixel}, region,
            part, blockIdx.x - data_blocks, N, C, pad_h, pad_w, use_bias);
    }
}
