"""Barriers, warp collectives, deadlocks and endless loops."""

from corpus.case import Case

REDUCTION = """
float v = x[threadIdx.x];
for (int h = 16; h > 0; h /= 2) {
    const float o = __shfl_down_sync(~0u, v, h, @@);  //!
    v += o;
}
if (threadIdx.x == 0) y[0] = v;"""

CASES = {
    "a barrier in one branch": Case(
        "deadlock early_exit divergent",
        """__shared__ float s[64]; const int t = threadIdx.x;
s[t] = x[t];
if (t < @@) {
    __syncthreads();                             //!
    y[t] = s[t ^ 1];
}""",
        "64",
        "32",
    ),
    "a barrier in both branches": Case(
        "divergent",
        """const int t = threadIdx.x;
if (t % 64 < @@) __syncthreads();                //!
else __syncthreads();                            //!
y[t] = 1;""",
        "64",
        "16",
    ),
    "threads that return before a barrier": Case(
        "early_exit",
        """__shared__ float s[64]; const int t = threadIdx.x;
if (t >= @@) return;
s[t] = x[t];
__syncthreads();                                 //!
y[t] = s[0];""",
        "64",
        "50",
    ),
    "a loop with a barrier whose count differs": Case(
        "early_exit",
        """const int t = threadIdx.x;
for (int i = t; i < @@; i += 64) {
    __syncthreads();                             //!
    y[i] = i;
}""",
        "128",
        "100",
    ),
    "a named barrier with too few threads": Case(
        "deadlock",
        """if (threadIdx.x < @@) asm volatile("bar.sync 1, 64;");    //!
if (threadIdx.x == 0) y[0] = n;""",
        "64",
        "32",
    ),
    "a named barrier whose count is no multiple of a warp": Case(
        "barrier_count",
        'asm volatile("bar.sync 1, @@;");   //!\nif (!threadIdx.x) y[0] = n;',
        "64",
        "48",
    ),
    "a named barrier with two counts": Case(
        "disagree",
        """const int t = threadIdx.x;
if (t < 32) asm volatile("bar.sync 1, 96;");     //!
else asm volatile("bar.sync 1, @@;");            //!
y[t] = 1;""",
        "96",
        "64",
        block=96,
    ),
    "a shuffle within half of a warp, all named": Case(
        "deadlock",
        """float v = x[threadIdx.x];
if (threadIdx.x < 16) v += __shfl_xor_sync(@@, v, 1);    //!
__syncwarp();                                            //!
y[threadIdx.x] = v;""",
        "0xffff",
        "~0u",
        block=32,
    ),
    "a shuffle whose mask lacks its callers": Case(
        "mask",
        """float v = x[threadIdx.x];
if (threadIdx.x < 16) v += __shfl_xor_sync(@@, v, 1);    //!
y[threadIdx.x] = v;""",
        "0xffff",
        "0xff",
        block=32,
    ),
    "a ballot whose mask lacks its callers": Case(
        "mask",
        "z[threadIdx.x] = __ballot_sync(@@, x[threadIdx.x] > 5);    //!",
        "~0u",
        "0xfffffff",
        block=32,
    ),
    "a warp's barrier whose mask lacks its callers": Case(
        "mask",
        "if (threadIdx.x < 8) __syncwarp(@@);    //!\ny[threadIdx.x] = 1;",
        "0xff",
        "0x7f",
        block=32,
    ),
    "a sum over a block that is no whole warp": Case(
        "shuffle",
        REDUCTION.replace("int h = 16", "int h = @@").replace(", @@)", ")"),
        "8",
        "16",
        block=16,
    ),
    "a sum over the active lanes only": Case(
        "shuffle",
        """const int t = threadIdx.x; const unsigned some = __ballot_sync(~0u, t < @@);
if (t < @@) {
    float v = x[t];
    for (int h = 16; h > 0; h /= 2) v += __shfl_down_sync(some, v, h);    //!
    if (t == 0) y[0] = v;
}""",
        "32",
        "20",
        block=32,
    ),
    "a broadcast from a lane that has left": Case(
        "shuffle",
        """const int t = threadIdx.x;
if (t < 8) return;
y[t] = __shfl_sync(0xffffff00, x[t], @@);        //!""",
        "8",
        "0",
        block=32,
    ),
    "a rotation within half a warp": Case(
        "shuffle",
        """const int t = threadIdx.x;
if (t < 16) y[t] = __shfl_sync(0xffff, x[t], (t + 1) % @@);    //!""",
        "16",
        "32",
        block=32,
    ),
    "a width that is no power of two": Case(
        "shuffle",
        "y[threadIdx.x] = __shfl_down_sync(~0u, x[threadIdx.x], 1, @@);    //!",
        "16",
        "12",
        block=32,
    ),
    "a width of three": Case(
        "shuffle",
        "y[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 1, @@);    //!",
        "4",
        "3",
        block=32,
    ),
    "volatile sums within a warp": Case(
        "race_shared",
        """__shared__ volatile float s[64]; const int t = threadIdx.x;
s[t] = x[t]; __syncthreads();
if (t < 32) {
    float v = s[t] + s[t + 32]; __syncwarp();
    s[t] = v; __syncwarp();
    v = s[t] + (t < 16 ? s[t + 16] : 0);         //!
    @@
    s[t] = v;                                    //!
    __syncwarp();
    if (t == 0) y[0] = s[0];
}""",
        "__syncwarp();",
        "",
    ),
    "volatile exchange within a warp": Case(
        "race_shared",
        """__shared__ volatile float s[32]; const int t = threadIdx.x;
s[t] = x[t];                                     //!
@@
y[t] = s[t ^ 1];                                 //!""",
        "__syncwarp();",
        "",
        block=32,
    ),
    "a volatile counter in shared memory": Case(
        "race_shared",
        """__shared__ volatile int m; if (threadIdx.x == 0) m = 0;
__syncthreads();
@@;                                              //!
__syncthreads(); if (threadIdx.x == 0) z[0] = m;""",
        "atomicAdd((int*)&m, 1)",
        "++m",
    ),
    "a flag in shared memory without a fence": Case(
        "race_shared",
        """__shared__ volatile int flag; __shared__ float value; const int t = threadIdx.x;
if (t == 0) flag = 0;
__syncthreads();
if (t == 40) {
    value = x[3];                                //!
    @@
    flag = 1;
}
if (t == 0) { while (flag == 0); __threadfence_block(); y[0] = value; }  //!""",
        "__threadfence_block();",
        "",
    ),
    "a flag that nobody sets": Case(
        "deadlock timeout",
        """__shared__ volatile int flag; const int t = threadIdx.x;
if (t == 0) flag = 0;
__syncthreads();
if (t == 0) while (flag != 1);                   //!
if (t == 40) flag = @@;""",
        "1",
        "2",
    ),
    "a lock that is taken twice": Case(
        "deadlock timeout",
        """if (threadIdx.x == 0) {
    while (atomicCAS(z, 0, 1) != 0);             //!
    __threadfence(); z[1] += 1; __threadfence();
    @@
}""",
        "atomicExch(z, 0);",
        "",
        grid=2,
    ),
    "blocks that wait for one too many": Case(
        "deadlock timeout",
        """if (threadIdx.x == 0) {
    atomicAdd(z, 1);
    while (*(volatile int*)z < (int)gridDim.x + @@);    //!
}
__syncthreads();
y[blockIdx.x] = 1;""",
        "0",
        "1",
        grid=3,
        block=1,
    ),
    "an endless loop": Case(
        "timeout",
        """int i = threadIdx.x;
while (i < n) {                                  //!
    asm volatile("xor.b32 %0, %0, 0;" : "+r"(i));    //!
    i += @@;                                     //!
}
y[threadIdx.x] = i;""",
        "1",
        "0",
        block=32,
        timeout=0.1,
    ),
    "an endless loop with a barrier": Case(
        "timeout",
        """__shared__ int more;
do {
    __syncthreads();                             //!
    if (threadIdx.x == 0) more = @@;             //!
    __syncthreads();                             //!
} while (more);                                  //!
y[threadIdx.x] = 1;""",
        "0",
        "1",
        timeout=0.1,
    ),
    "a trap": Case(
        "trap",
        "if (x[threadIdx.x] > @@) __trap();      //!\ny[threadIdx.x] = 1;",
        "100",
        "10",
    ),
}
