/*
image_batch.cu: a batch of images from those on the device: gathered, moved, normalised.

Math      x[n][h][w][c] = values[c][p] with p = images[index][c][top + h][left +- w] where that
          row and column are within the first and the end that the table has for image n, else 0;
          batch_labels[n] = labels[index]. For floats x is p itself
Source    gpuconv/data/draws.py (the table); the values are the loader's own, computed by the
          host, so that x has the loader's bits
Layout    x: float32 (count, rows, columns, channels); images: PIXEL (any number, channels, height,
          width); table: int32 (slots, stride, 4): index, or ~index where mirrored; then 16 bits
          each, the former below: top and left, first and end of rows, first and end of columns;
          values: float32 (channels, 256). Where WORDS is 1 the table is the index alone, int32
          (slots, stride, 1), and all images lie alike, with `all_top` and `all_left`
Geometry  Grid-stride, a thread for VEC elements of x; blocks of 128, so that a batch of 64 digits
          of 32x32 has 128 of them. The batch is the table's number (slot[0] + first) % slots: a
          launch that is repeated as it is finds the next one where something else counts up
Traffic   x once; the bytes of the images that it shows, once
Floor     (4 + sizeof(PIXEL))*count*rows*columns*channels bytes / DRAM bandwidth
Order     Each element has one owner; values are selected, not computed
Limits    Elements of x below 2^31; offsets into the images are 64-bit. The sides of images, padding
          included, below 2^14 where WORDS is 4. The table is not checked: the host draws it
Not here  Interpolation (rotation, scaling)
Macros    VEC (4, or 1 where an image's elements are not divisible by 4), PIXEL (unsigned char or
          float), WORDS (of an image in the table: 4 or 1)
*/
#include "common.cuh"

// The two numbers of a word, each of 16 bits with a sign.
__device__ __forceinline__ int low(int word) { return (short)word; }
__device__ __forceinline__ int high(int word) { return word >> 16; }

// What a pixel is in x; black (0) is one too.
__device__ __forceinline__ float value_of(unsigned char pixel, const float* values, int c)
{
    return values[c * 256 + pixel];
}
__device__ __forceinline__ float value_of(float pixel, const float*, int) { return pixel; }

extern "C" __global__ void __launch_bounds__(128, 8) image_batch(float* __restrict__ x,
    long long* __restrict__ batch_labels, const PIXEL* __restrict__ images,
    const long long* __restrict__ labels, const int* __restrict__ table,
    const float* __restrict__ values, const unsigned* __restrict__ slot, int first, int vectors,
    int slots, int stride, int channels, int height, int width, int all_top, int all_left,
    int columns, int per_image, unsigned per_image_mul, int per_image_shift, unsigned channels_mul,
    int channels_shift, unsigned columns_mul, int columns_shift)
{
    const int* rows = table + (long long)((slot[0] + first) % slots) * stride * WORDS;
    for (long long i = first_index(); i < vectors; i += index_step()) {
        const int n = divide((int)i, per_image_mul, per_image_shift);
        const int within = ((int)i - n * per_image) * VEC;
        const int pixel = divide(within, channels_mul, channels_shift);
        int h = divide(pixel, columns_mul, columns_shift), w = pixel - h * columns;
        int c = within - pixel * channels;
        const int* row = rows + n * WORDS;
        const bool mirrored = WORDS > 1 && row[0] < 0;
        const int index = mirrored ? ~row[0] : row[0], step = mirrored ? -1 : 1;
        int top = all_top, left = all_left;
        int first_h = 0, end_h = height, first_w = 0, end_w = width;
        if (WORDS > 1) {
            top = low(row[1]), left = high(row[1]);
            first_h = low(row[2]), end_h = high(row[2]);
            first_w = low(row[3]), end_w = high(row[3]);
        }
        const PIXEL* image = images + (long long)index * channels * height * width;
        Floats<VEC> out;
        for (int k = 0; k < VEC; ++k) {
            const int from_h = top + h, from_w = left + step * w;
            const bool inside =
                from_h >= first_h && from_h < end_h && from_w >= first_w && from_w < end_w;
            const PIXEL p = inside ? image[((long long)c * height + from_h) * width + from_w] : 0;
            out.v[k] = value_of(p, values, c);
            if (++c == channels) {
                c = 0;
                if (++w == columns) {
                    w = 0;
                    ++h;
                }
            }
        }
        store_global<VEC>(x + i * VEC, out);
        if (within == 0) batch_labels[n] = labels[index];
    }
}
