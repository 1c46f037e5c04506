/*
conv_mma.cu: two-dimensional convolution, forward and backward data, and linear layers, on tensor
cores: TF32, bfloat16 and float16 with sums in float32.

Math      y[n,p,q,k]  = act(b[k] + sum over r,s,c of w[k,r,s,c] * x[n,h,w,c])
          dx[n,h,w,c] = mask * (onto[n,h,w,c] + sum over r,s,k of w[k,r,s,c] * dy[n,p,q,k])
          as in conv_simt.cu: one product of gathered pixels and filters, backward data in stride
          phases (conv_phase.cuh). Here both are one kernel: `gathered` is x or dy, `result` y or
          dx; the filters come from weight_transform.cu, rows of terms, one for each result channel
Source    cuDNN (Chetlur et al. 2014); CUTLASS, implicit GEMM with multistage cp.async; PTX ISA,
          "Warp-level matrix instructions"
Layout    gathered, result, onto, sign: ELEMENT NHWC; filters: ELEMENT (group, channel of the
          result, term); b: float32; partials: for each TILE pixels the moments of y's channels
          (moments.cuh)
Geometry  One block per TILE pixels (of one phase) x TILE_N channels of a group: grid.x = tiles of
          pixels * phases * tiles across, across fastest; grid.y = group. 32 threads a warp of
          64x64, 64x32 or 32x32. Three stages of 64 bytes of each row in shared memory (TILE 64: two
          of 128), filled by cp.async while others are multiplied; chunk c of row r lies at
          c ^ (r/2 % 4) (c ^ r%8), so that neither copies nor ldmatrix meet a bank conflict
Traffic   Per block: TILE rows of the gathered terms, TILE_N of the filters, its tile of the result
          once; partials, sign or onto once where they are used
Floor     2*N*P*Q*K*R*S*C/groups flops / tensor-core peak of FORMAT (backward data the same)
Order     One owner per output, the sum in ascending (r,s,channel) by mma of STEP terms, in float32:
          bit-identical from run to run, not from one architecture to another. The error is that of
          the operands' rounding (docs/numerics) and of float32 sums
Limits    As conv_simt.cu. R <= 16 and S <= 15, in backward data of the largest phase; channels of a
          group and pixels of WIDTH elements: the host pads others (pad_channels.cu). Compute
          capability 8.0
Not here  Depthwise filters; split-K of a linear layer of few rows; wgmma
Macros    TILE, TILE_N; FORMAT, ELEMENT (mma.cuh); BACKWARD (1: backward data, by phases); VEC_OUT
          (WIDTH, or 1 where a group's results are no multiple of it); MOMENTS (1: `partials`). The
          scalars use_bias, rectify, use_sign and use_onto choose the epilogue
*/
#define WARP_M (TILE == 64 ? 32 : 64)
#define WARP_N (TILE_N == 64 ? 32 : 64)
#define DEEP (TILE == 64)
#define BLOCKS (TILE == 64 ? 4 : TILE_N == 64 ? 3 : 1)
#include "conv_mma.cuh"
#include "conv_phase.cuh"
#include "moments.cuh"

// Behind the stages in shared memory, all of it dynamic: of the tile's rows their pixels of the
// result, -1 past the last; then the taps, and PAST that no row has.
constexpr int PAST = CHUNKS * STAGES;  // copies ask for so many past the last, of one vector each

// What the loop needs of a tap: its distance from tap (0,0), less the vectors of the taps before,
// and its bits.
struct alignas(8) Tap {
    int distance;
    unsigned bits;
};

// An axis of the gathered image: the result's pixel i reads rows start + i*stride + t*step.
struct GatherAxis {
    int size, start, stride, step, taps;

    __device__ __forceinline__ unsigned bits(int pixel) const
    {
        unsigned inside = 0;
        for (int t = 0; t < taps; ++t) {
            const int row = start + pixel * stride + t * step;
            inside |= (unsigned)((unsigned)row < (unsigned)size) << t;
        }
        return inside;
    }
};

// Both operands of one thread: chunk threadIdx.x % CHUNKS of every SIDE-th row. Offsets are in
// vectors.
struct GatherLoader {
    static constexpr int SIDE = THREADS / CHUNKS;
    static constexpr int A = TILE / SIDE, B = TILE_N / SIDE;
    const char *image, *filters;  // of the group; the latter from the phase's first tap
    const Tap* taps;
    int base[A];          // offsets of the rows' tap (0,0), perhaps outside the image
    unsigned outside[A];  // bit r: the window's row r is not in the image; bit 16+s: its column s
    int row[B];           // offsets of the filters
    int vector, end;      // of the next step, among a row's taps and channels; their number
    unsigned vectors_mul;
    int vectors_shift;
    unsigned to, from_a, from_b;  // addresses in stage 0: of copies, of ldmatrix

    // Where chunk c of a row lies: eight chunks share the 32 banks.
    __device__ __forceinline__ static int place(int row, int chunk)
    {
        return row * ROW_BYTES + (chunk ^ row * CHUNKS / 8 % CHUNKS) * 16;
    }

    __device__ __forceinline__ void open(unsigned shared)
    {
        const int lane = threadIdx.x % 32;
        to = shared + place(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
        from_a = shared + place(warp_row() + lane % 16, lane / 16);
        from_b = shared + TILE * ROW_BYTES
                 + place(warp_column() + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }

    __device__ __forceinline__ void complete(int) const { }

    __device__ __forceinline__ void fetch(int stage)
    {
        const Tap now = taps[divide(vector, vectors_mul, vectors_shift)];
        const char* from = offset(image, now.distance + vector, 16);
#pragma unroll
        for (int i = 0; i < A; ++i)
            copy_async(to + stage + i * SIDE * ROW_BYTES, offset(from, base[i], 16),
                (outside[i] & now.bits) == 0);
        from = offset(filters, vector, 16);
#pragma unroll
        for (int i = 0; i < B; ++i)
            copy_async(to + stage + (TILE + i * SIDE) * ROW_BYTES, offset(from, row[i], 16),
                vector < end);
        vector += CHUNKS;
    }

    // Chunks 2*part and 2*part+1 are at the places of the first two, with the part's bits turned.
    __device__ __forceinline__ void read(Fragments& f, int stage, int part)
    {
        const unsigned a = (from_a ^ part * 32) + stage, b = (from_b ^ part * 32) + stage;
#pragma unroll
        for (int i = 0; i < ROWS_M; ++i) load_matrices(f.a[i], a + i * 16 * ROW_BYTES);
#pragma unroll
        for (int j = 0; j < ROWS_N; j += 2) {
            unsigned both[4];
            load_matrices(both, b + j * 8 * ROW_BYTES);
            f.b[j][0] = both[0], f.b[j][1] = both[1];
            f.b[j + 1][0] = both[2], f.b[j + 1][1] = both[3];
        }
    }
};

// VEC_OUT elements of the result at once.
template <class Result>
__device__ __forceinline__ void each_result(const Sums& sums, float* staging, Result result)
{
    // A warp lays out 16 rows of its tile in shared memory, with 8 floats more than a row has, so
    // that the pairs that lanes hold meet no bank conflict. Eight lanes read from rows r and r + 4:
    // turned by 20 in one of them, what they read lies in other banks too.
    constexpr int PITCH = WARP_N + 8, VECTORS = WARP_N / VEC_OUT;
    const int lane = threadIdx.x % 32;
    float* const mine = staging + threadIdx.x / 32 * 16 * PITCH;
    const auto at = [&](int row, int column) {
        return mine + row * PITCH + (column ^ row / 4 % 2 * 20);
    };
#pragma unroll
    for (int i = 0; i < ROWS_M; ++i) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < ROWS_N; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                store_shared(shared_address(at(lane / 4 + 8 * half, 8 * j + lane % 4 * 2)),
                    sums[i][j][2 * half], sums[i][j][2 * half + 1]);
        __syncwarp();
#pragma unroll(VEC_OUT == 1 ? 1 : 16 * VECTORS / 32)
        for (int k = lane; k < 16 * VECTORS; k += 32) {
            const int rest = k / (2 * VECTORS), row = rest / 4 * 8 + k / 4 % 2 * 4 + rest % 4;
            const int column = (k / 8 % (VECTORS / 4) * 4 + k % 4) * VEC_OUT;
            float value[VEC_OUT];
            for (int v = 0; v < VEC_OUT; v += min(VEC_OUT, 4)) {
                const auto part = load<VEC_OUT == 1 ? 1 : 4>(at(row, column + v));
                for (int u = 0; u < min(VEC_OUT, 4); ++u) value[v + u] = part.v[u];
            }
            result(warp_row() + 16 * i + row, warp_column() + column, value);
        }
    }
}

// What a block's tile of y leaves of its values for batch norm: the moments of each column (a
// filter) over its rows, less the first row. The values are those of y, rounded as it is.
__device__ __forceinline__ void tile_moments(float* partials, float* staging, const Sums& sums,
    const float* b, int rows, int columns, int K)
{
    float* const shifts = staging;                                 // [TILE_N]
    auto* const parts = (Moments<1>(*)[TILE_N])(staging + TILE_N);  // [WARPS_M][TILE_N]
    const int lane = threadIdx.x % 32;
    const auto value = [&](int i, int j, int k) {
        const int column = warp_column() + 8 * j + lane % 4 * 2 + k % 2;
        return to_float(to_element(sums[i][j][k] + (b && column < columns ? b[column] : 0.0f)));
    };
    __syncthreads();
#pragma unroll
    for (int j = 0; j < ROWS_N; ++j)
        for (int k = 0; k < 2; ++k)
            if (warp_row() == 0 && lane < 4)
                shifts[warp_column() + 8 * j + lane * 2 + k] = value(0, j, k);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < ROWS_N; ++j)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const int column = warp_column() + 8 * j + lane % 4 * 2 + k;
            float values[2 * ROWS_M];
#pragma unroll
            for (int i = 0; i < 2 * ROWS_M; ++i) values[i] = value(i / 2, j, k + i % 2 * 2);
            Moments<1> mine = moments_of(values, shifts[column],
                [&](int i) { return warp_row() + i / 2 * 16 + i % 2 * 8 + lane / 4 < rows; });
            merge_lanes(mine, 4);
            if (lane < 4) parts[warp_row() / WARP_M][column] = mine;
        }
    __syncthreads();
    for (int column = threadIdx.x; column < min(TILE_N, columns); column += THREADS) {
        Moments<1> all = parts[0][column];
        for (int i = 1; i < WARPS_M; ++i) merge(all, parts[i][column]);
        store_moments<1>(partials + column, K, {shifts[column]}, all);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_gather_mma(ELEMENT* result,
    float* __restrict__ partials, const ELEMENT* __restrict__ gathered,
    const ELEMENT* __restrict__ filters, const float* __restrict__ b, const ELEMENT* sign,
    const ELEMENT* onto, int pixels, int N, int H, int W, int P, int Q, int R, int S, int C, int K,
    int channels, int results, int tiles_across, int phases, int phases_w, int stride_h,
    int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, int every_h, int every_w, int step_h,
    int step_w, unsigned vectors_mul, int vectors_shift, unsigned rows_mul, int rows_shift,
    unsigned short_rows_mul, int short_rows_shift, unsigned columns_mul, int columns_shift,
    unsigned short_columns_mul, int short_columns_shift,
    int use_bias, int rectify, int use_sign, int use_onto)
{
    extern __shared__ __align__(128) unsigned char stages[];
    int* const place = (int*)(stages + STAGES * STAGE_BYTES);  // -1 past the last
    Tap* const taps = (Tap*)(place + TILE);
    const int tile = blockIdx.x / tiles_across, group = blockIdx.y;
    const int column = (blockIdx.x - tile * tiles_across) * TILE_N;
    const int down = BACKWARD ? tile / phases : tile, phase = tile - down * phases;
    if (group * channels >= C) return;

    // H, W, C: of the gathered image; P, Q, K: of the result.
#if BACKWARD
    const int phase_h = phase / phases_w;
    const PhaseAxis rows(phase_h, P, pad_h, stride_h, dil_h, R, every_h);
    const PhaseAxis columns(phase - phase_h * phases_w, Q, pad_w, stride_w, dil_w, S, every_w);
    const bool some = rows.taps > 0 && columns.taps > 0;
    const GatherAxis vertical = {H, rows.start, 1, -step_h, some ? rows.taps : 0};
    const GatherAxis horizontal = {W, columns.start, 1, -step_w, some ? columns.taps : 0};
    // The first P mod stride_h phases have a row more than the others, likewise columns.
    const bool tall = rows.count * stride_h >= P, wide = columns.count * stride_w >= Q;
    const int height = rows.count, width = columns.count;
    const int first_h = rows.first, first_w = columns.first, across = stride_w, along = stride_h;
    // Filters lie by phases, rows of phases first: this phase's first tap.
    int before_h = 0, before_w = 0;
    for (int other = 0; other < phase_h; ++other)
        before_h += PhaseAxis(other, P, pad_h, stride_h, dil_h, R, every_h).taps;
    for (int other = 0; other < columns.first; ++other)
        before_w += PhaseAxis(other, Q, pad_w, stride_w, dil_w, S, every_w).taps;
    const int first_tap = before_h * S + before_w * rows.taps;
#else
    const GatherAxis vertical = {H, -pad_h, stride_h, dil_h, R};
    const GatherAxis horizontal = {W, -pad_w, stride_w, dil_w, S};
    const bool tall = true, wide = true;
    const int height = P, width = Q, first_h = 0, first_w = 0, across = 1, along = 1;
    const int first_tap = 0;
#endif
    const int phase_pixels = N * height * width;
    if (down * TILE >= phase_pixels) return;
    const unsigned line_mul = wide ? columns_mul : short_columns_mul;
    const int line_shift = wide ? columns_shift : short_columns_shift;
    const unsigned image_mul = tall ? rows_mul : short_rows_mul;
    const int image_shift = tall ? rows_shift : short_rows_shift;

    GatherLoader loader;
    const int all_taps = vertical.taps * horizontal.taps, vectors = channels / WIDTH;
    for (int tap = threadIdx.x; tap < all_taps + PAST; tap += THREADS) {
        const int r = tap / max(horizontal.taps, 1), s = tap - r * horizontal.taps;
        const int distance = (r * vertical.step * W + s * horizontal.step) * (C / WIDTH);
        taps[tap] = {distance - tap * vectors,
            tap < all_taps ? 1u << r | 0x10000u << s : 1u << 31};
    }
    for (int i = 0; i < GatherLoader::A; ++i) {
        const int row = threadIdx.x / CHUNKS + i * GatherLoader::SIDE, pixel = down * TILE + row;
        const int line = divide(pixel, line_mul, line_shift), q = pixel - line * width;
        const int n = divide(line, image_mul, image_shift), p = line - n * height;
        const int h = vertical.start + p * vertical.stride;
        const int w = horizontal.start + q * horizontal.stride;
        loader.base[i] = ((n * H + h) * W + w) * (C / WIDTH);
        loader.outside[i] =
            pixel < phase_pixels ? ~(vertical.bits(p) | horizontal.bits(q) << 16) : ~0u;
        if (threadIdx.x % CHUNKS == 0)
            place[row] = pixel < phase_pixels
                ? (n * P + first_h + p * along) * Q + first_w + q * across : -1;
    }
    loader.vector = threadIdx.x % CHUNKS;
    loader.end = all_taps * vectors;
    loader.vectors_mul = vectors_mul, loader.vectors_shift = vectors_shift;
    loader.image = offset(gathered, group * vectors, 16);
    loader.taps = taps;
    const int pitch = R * S * vectors;
    for (int i = 0; i < GatherLoader::B; ++i) {
        const int k = column + threadIdx.x / CHUNKS + i * GatherLoader::SIDE;
        loader.row[i] = min(k, results - 1) * pitch;
    }
    loader.filters = offset(filters, group * results * pitch + first_tap * vectors, 16);
    loader.open(shared_address(stages));

    __syncthreads();  // the tables are whole
    Sums sums = {};
    accumulate(sums, loader, (loader.end + CHUNKS - 1) / CHUNKS);

    const int first = group * results + column;
    each_result(sums, (float*)stages, [&](int row, int k, const float (&sum)[VEC_OUT]) {
        const int pixel = place[row];
        if (pixel < 0 || column + k >= results) return;
        const long long at = (long long)pixel * K + first + k;
        struct alignas(VEC_OUT * sizeof(ELEMENT)) Elements {
            ELEMENT v[VEC_OUT];
        } value, rest, other;
        if (use_onto) rest = *(const Elements*)(onto + at);
        if (use_sign) other = *(const Elements*)(sign + at);
        for (int v = 0; v < VEC_OUT; ++v) {
            float total = sum[v];
            if (use_bias) total += b[first + k + v];
            if (use_onto) total += to_float(rest.v[v]);
            if (rectify) total = relu(total);
            if (use_sign) total = relu_mask(total, to_float(other.v[v]));
            value.v[v] = to_element(total);
        }
        *(Elements*)(result + at) = value;
    });
    if (MOMENTS) {
        partials += (long long)down * MOMENT_ROWS * K + first;
        tile_moments(partials, (float*)stages, sums, use_bias ? b + first : nullptr,
            pixels - down * TILE, results - column, K);
    }
}
