"""Races within a block: shared memory, barriers, warps, named barriers, shared counters."""

from corpus.case import Case

CASES = {
    "no barrier between a write and a read": Case(
        "race_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
s[t] = x[t];                                     //!
@@
y[t] = s[63 - t];                                //!""",
        "__syncthreads();",
        "",
    ),
    "no barrier between a read and the next round's write": Case(
        "race_shared",
        """__shared__ float s[64]; const int t = threadIdx.x; float sum = 0;
for (int i = 0; i < 3; ++i) {
    s[t] = x[t] + i;                             //!
    __syncthreads();
    sum += s[63 - t];                            //!
    @@
}
y[t] = sum;""",
        "__syncthreads();",
        "",
    ),
    "a warp's barrier where the whole block shares": Case(
        "race_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
s[t] = x[t];                                     //!
@@
y[t] = s[63 - t];                                //!""",
        "__syncthreads();",
        "__syncwarp();",
    ),
    "a barrier for some threads only, in a tree of sums": Case(
        "race_shared",
        """__shared__ float s[128]; const int t = threadIdx.x;
s[t] = x[t]; __syncthreads();
for (int h = 64; h > 0; h /= 2) {
    if (t < h) s[t] += s[t + h];                 //!
    @@
}
if (t == 0) y[0] = s[0];                         //!""",
        "__syncthreads();",
        "if (h > 64) __syncthreads();",
        block=128,
    ),
    "the last step of a tree within a warp, unsynchronised": Case(
        "race_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
s[t] = x[t]; __syncthreads();
if (t < 32) {
    float v = s[t] + s[t + 32]; __syncwarp();
    s[t] = v; __syncwarp();
    for (int h = 16; h > 0; h /= 2) {
        v += t < h ? s[t + h] : 0;               //!
        @@
        s[t] = v;                                //!
        __syncwarp();
    }
    if (t == 0) y[0] = v;
}""",
        "__syncwarp();",
        "",
    ),
    "half of a warp synchronised, both halves read": Case(
        "race_shared",
        """__shared__ float s[32]; const int t = threadIdx.x;
s[t] = x[t];                                     //!
__syncwarp(@@);
y[t] = s[31 - t];                                //!""",
        "~0u",
        "t < 16 ? 0xffff : 0xffff0000",
        block=32,
    ),
    "halves of a warp that share within each": Case(
        "race_shared",
        """__shared__ float s[32]; const int t = threadIdx.x;
s[t] = x[t];                                     //!
__syncwarp(t < 16 ? 0xffff : 0xffff0000);
y[t] = s[@@];                                    //!""",
        "t ^ 15",
        "t ^ 31",
        block=32,
    ),
    "a shuffle in the place of a warp's barrier": Case(
        "race_shared",
        """__shared__ float s[32]; const int t = threadIdx.x; float v = 1;
s[t] = x[t];                                     //!
@@
y[t] = s[t ^ 1] + v;                             //!""",
        "v = __shfl_sync(~0u, v, 1); __syncwarp();",
        "v = __shfl_sync(~0u, v, 1);",
        block=32,
    ),
    "a vote in the place of a warp's barrier": Case(
        "race_shared",
        """__shared__ float s[32]; const int t = threadIdx.x;
s[t] = x[t];                                     //!
@@
y[t] = s[t ^ 1];                                 //!""",
        "if (__any_sync(~0u, t == n)) return; __syncwarp();",
        "if (__any_sync(~0u, t == n)) return;",
        block=32,
    ),
    "a warp's barrier before the other warp's data": Case(
        "race_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
if (t < 32) s[t] = x[t];                         //!
@@
if (t >= 32) y[t] = s[t - 32];                   //!""",
        "__syncthreads();",
        "__syncwarp();",
    ),
    "all threads write one word": Case(
        "race_shared",
        """__shared__ float s; const int t = threadIdx.x;
@@ s = x[t];                                     //!
__syncthreads(); y[t] = s;""",
        "if (t == 5)",
        "",
    ),
    "two threads write neighbouring elements, too near": Case(
        "race_shared",
        """__shared__ float s[130]; const int t = threadIdx.x;
s[@@ * t] = x[t]; s[@@ * t + 1] = x[t] + 9;      //!
__syncthreads(); y[t] = s[t];""",
        "2",
        "1",
    ),
    "a counter without an atomic": Case(
        "race_shared",
        """__shared__ int m; if (threadIdx.x == 0) m = 0;
__syncthreads();
@@;                                              //!
__syncthreads(); if (threadIdx.x == 0) z[0] = m;""",
        "atomicAdd(&m, 1)",
        "m += 1",
    ),
    "a counter read while others add to it": Case(
        "race_shared",
        """__shared__ int m; const int t = threadIdx.x; if (t == 0) m = 0;
__syncthreads();
atomicAdd(&m, 1);                                //!
@@
if (t == 7) z[0] = m;                            //!""",
        "__syncthreads();",
        "",
    ),
    "a counter set to zero while others add to it": Case(
        "race_shared",
        """__shared__ int m; const int t = threadIdx.x;
if (t == 0) m = 0;                               //!
@@
atomicAdd(&m, 1);                                //!
__syncthreads(); z[t] = m;""",
        "__syncthreads();",
        "__syncwarp();",
    ),
    "an atomic maximum and a plain one": Case(
        "race_shared",
        """__shared__ int m; const int t = threadIdx.x; if (t == 0) m = 0;
__syncthreads();
if (t < 32) atomicMax(&m, t);                    //!
else @@;                                         //!
__syncthreads(); z[t] = m;""",
        "atomicMax(&m, t)",
        "m = t",
    ),
    "a histogram whose bins are cleared too late": Case(
        "race_shared",
        """__shared__ int bins[32]; const int t = threadIdx.x;
if (t < 32) bins[t] = 0;                         //!
@@
atomicAdd(&bins[(t * 7) % 32], 1);               //!
__syncthreads(); if (t < 32) z[t] = bins[t];""",
        "__syncthreads();",
        "",
    ),
    "a named barrier of other warps": Case(
        "race_shared",
        """__shared__ float s[32]; const int t = threadIdx.x;
if (t < 32) {
    s[t] = x[t];                                 //!
    asm volatile("bar.arrive 1, 64;" ::: "memory");
} else if (t < 64) {
    asm volatile("bar.sync @@, 64;" ::: "memory");
    y[t] = s[t - 32];                            //!
} else asm volatile("bar.arrive 2, 64;" ::: "memory");""",
        "1",
        "2",
        block=96,
    ),
    "two stages, whose buffers are not switched": Case(
        "race_shared",
        """__shared__ float s[2][64]; const int t = threadIdx.x; float sum = 0;
for (int i = 0; i < 4; ++i) {
    s[@@][t] = x[64 * i + t];                    //!
    __syncthreads();
    sum += s[@@][63 - t];                        //!
}
y[t] = sum;""",
        "i % 2",
        "0",
    ),
    "three stages, of which two are one": Case(
        "race_shared",
        """__shared__ float s[3][64]; const int t = threadIdx.x; float sum = 0;
s[0][t] = x[t];
for (int i = 0; i < 5; ++i) {
    s[(i + 1) % @@][t] = x[64 * i + t];          //!
    __syncthreads();
    sum += s[i % @@][63 - t] + s[(i + 1) % @@][t ^ 1];  //!
}
y[t] = sum;""",
        "3",
        "2",
    ),
    "a transposed tile without a barrier": Case(
        "race_shared",
        """__shared__ float s[8][9]; const int i = threadIdx.x, j = threadIdx.y;
s[j][i] = x[8 * j + i];                          //!
@@
y[8 * j + i] = s[i][j];                          //!""",
        "__syncthreads();",
        "",
        block=(8, 8),
    ),
    "dynamic shared memory, two arrays that overlap": Case(
        "race_shared",
        """extern __shared__ float s[]; const int t = threadIdx.x;
float* a = s; float* b = s + @@;
a[t] = x[t]; b[t] = x[t + 1];                    //!
__syncthreads(); y[t] = a[t] + b[t];""",
        "64",
        "32",
        shared=512,
    ),
    "bytes of a word belong to several threads": Case(
        "race_shared",
        """__shared__ unsigned char s[64]; const int t = threadIdx.x;
s[@@] = t;                                       //!
__syncthreads(); c[t] = s[t / 2];""",
        "t",
        "t / 2",
        block=33,
    ),
    "a leader's result read without a barrier": Case(
        "race_shared",
        """__shared__ float total; const int t = threadIdx.x;
if (t == 0) total = x[3] + x[4];                 //!
@@
y[t] = x[t] / total;                             //!""",
        "__syncthreads();",
        "__syncwarp();",
    ),
    "softmax that writes its sums over those of the row's maxima": Case(
        "race_shared",
        """__shared__ float s[2]; const int t = threadIdx.x, warp = t / 32;
float v = x[t];
for (int h = 16; h; h /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, h));
if (t % 32 == 0) s[warp] = v;
__syncthreads();
const float most = fmaxf(s[0], s[1]);            //!
@@
float e = expf(x[t] - most);
for (int h = 16; h; h /= 2) e += __shfl_xor_sync(~0u, e, h);
if (t % 32 == 0) s[warp] = e;                    //!
__syncthreads();
y[t] = s[0] + s[1];""",
        "__syncthreads();",
        "",
    ),
    "all lanes store the same value": Case(
        "same_value",
        """__shared__ int any; const int t = threadIdx.x;
if (t == 0) any = 0;
__syncthreads();
@@ any = 1;                                      //!
__syncthreads(); z[t] = any;""",
        "if (t == 40)",
        "if (x[t] > 10)",
    ),
}
