"""Races in global memory: within a block, across blocks, flags, fences, locks, atomics."""

from corpus.case import Case

LOOK_BACK = """
__shared__ int before; const int b = blockIdx.x, t = threadIdx.x;
if (t == 0) {
    z[b] = b + 1;                                //!
    @@
    *(volatile int*)&z[100 + b] = 1;
    int sum = 0;
    for (int o = b - 1; o >= 0; --o) {
        while (*(volatile int*)&z[100 + o] == 0);
        __threadfence();
        sum += z[o];                             //!
    }
    before = sum;
}
__syncthreads();
if (t < 4) y[4 * b + t] = before;"""
LOCK = """
if (threadIdx.x == 0) {
    while (atomicCAS(&z[0], 0, 1) != 0);
    __threadfence();
    z[1] += blockIdx.x;                          //!
    @@
    atomicExch(&z[0], 0);
}"""
LOCK_ENTRY = """
if (threadIdx.x == 0) {
    while (atomicCAS(&z[0], 0, 1) != 0);
    @@
    z[1] += blockIdx.x;                          //!
    __threadfence();
    atomicExch(&z[0], 0);
}"""
LAST_BLOCK = """
__shared__ int last; const int t = threadIdx.x;
if (t == 0) {
    y[blockIdx.x] = x[blockIdx.x];               //!
    @@
    last = atomicAdd(&z[0], 1) == 3;
}
__syncthreads();
if (last && t < 4) y[100 + t] = y[t];            //!"""
HAND_OVER = """
if (threadIdx.x == 0 && blockIdx.x == 0) {
    y[7] = 3;                                    //!
    @@
    *(volatile int*)z = 1;
} else if (threadIdx.x == 0) {
    while (*(volatile int*)z == 0);
    __threadfence();
    y[8] = y[7];                                 //!
}"""
HAND_OVER_READER = """
if (threadIdx.x == 0 && blockIdx.x == 0) {
    y[7] = 3;                                    //!
    __threadfence();
    *(volatile int*)z = 1;
} else if (threadIdx.x == 0) {
    while (*(volatile int*)z == 0);
    @@
    y[8] = y[7];                                 //!
}"""

CASES = {
    "a lost update across blocks": Case(
        "race_global",
        "@@;                      //!",
        "atomicAdd(&z[threadIdx.x % 4], 1)",
        "z[threadIdx.x % 4 + 4 * (blockIdx.x / 8)] += threadIdx.x",
        grid=4,
        block=4,
        argument=2,
    ),
    "a lost update within a block": Case(
        "race_global",
        "@@;                      //!",
        "atomicAdd(&y[threadIdx.x / 2], 1.0f)",
        "y[threadIdx.x / 2] += x[threadIdx.x]",
        argument=0,
    ),
    "two blocks write one word": Case(
        "race_global",
        "y[@@ + threadIdx.x] = blockIdx.x;  //!",
        "blockIdx.x * 32",
        "blockIdx.x * 31",
        grid=3,
        block=32,
        argument=0,
    ),
    "a grid-stride loop with the wrong stride": Case(
        "race_global",
        """for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < 200; i += @@)
    y[i] = blockIdx.x + x[i];                    //!""",
        "gridDim.x * blockDim.x",
        "blockDim.x",
        grid=3,
        block=32,
        argument=0,
    ),
    "in place, reading what a neighbouring block writes": Case(
        "race_global",
        """const int i = blockIdx.x * 32 + threadIdx.x;
const float left = y[i ? i - 1 : 0], here = y[i];    //!
@@[i] = left + here + 1;                             //!""",
        "z",
        "y",
        grid=4,
        block=32,
        argument=0,
    ),
    "in place within a block": Case(
        "race_global",
        """const int i = threadIdx.x;
const float left = y[i ? i - 1 : 0];             //!
@@
y[i] = left + 1;                                 //!""",
        "__syncthreads();",
        "",
        argument=0,
    ),
    "a vector overlaps the next thread's": Case(
        "race_global",
        "((float4*)y)[@@] = make_float4(threadIdx.x, 2, 3, 4);  //!",
        "threadIdx.x",
        "threadIdx.x / 2",
        block=16,
        argument=0,
    ),
    "bytes of one word belong to several threads, and so does one byte": Case(
        "race_global",
        "c[@@] = threadIdx.x + blockIdx.x;  //!",
        "blockIdx.x * 64 + threadIdx.x",
        "blockIdx.x * 64 + threadIdx.x / 2",
        grid=2,
        argument=3,
    ),
    "the last block reads the others' results, without a fence": Case(
        "race_global",
        LAST_BLOCK,
        "__threadfence();",
        "",
        grid=4,
        argument=0,
    ),
    "the last block reads the others' results, with a block's fence": Case(
        "race_global",
        LAST_BLOCK,
        "__threadfence();",
        "__threadfence_block();",
        grid=4,
        argument=0,
    ),
    "counters at entry and exit order nothing": Case(
        "race_global",
        """if (threadIdx.x == 0) atomicAdd(&z[0], 1);
__syncthreads();
y[@@] = blockIdx.x + threadIdx.x;                //!
__syncthreads();
if (threadIdx.x == 0) atomicAdd(&z[1], 1);""",
        "64 * blockIdx.x + threadIdx.x",
        "threadIdx.x",
        grid=3,
        argument=0,
    ),
    "two flags: the fence and the flag of the one, the data of the other": Case(
        "race_global",
        """if (threadIdx.x) return;
if (blockIdx.x == 0) { y[0] = 1; __threadfence(); *(volatile int*)&z[0] = 1; }  //!
if (blockIdx.x == 1) { y[1] = 1; __threadfence(); *(volatile int*)&z[1] = 1; }  //!
if (blockIdx.x == 2) {
    while (*(volatile int*)&z[@@] == 0);
    __threadfence();
    y[5] = y[1];                                 //!
}""",
        "1",
        "0",
        grid=3,
        argument=0,
    ),
    "a look-back scan without the writer's fence": Case(
        "race_global",
        LOOK_BACK,
        "__threadfence();",
        "",
        grid=6,
        block=32,
        argument=2,
    ),
    "a look-back scan with a block's fence": Case(
        "race_global",
        LOOK_BACK,
        "__threadfence();",
        "__threadfence_block();",
        grid=6,
        block=32,
        argument=2,
    ),
    "a lock released without a fence": Case(
        "race_global",
        LOCK,
        "__threadfence();",
        "",
        grid=4,
        argument=2,
    ),
    "a lock taken without a fence": Case(
        "race_global",
        LOCK_ENTRY,
        "__threadfence();",
        "",
        grid=4,
        argument=2,
    ),
    "a flag before the data": Case(
        "race_global",
        HAND_OVER,
        "__threadfence();",
        "",
        grid=2,
        argument=0,
    ),
    "a flag read without a fence": Case(
        "race_global",
        HAND_OVER_READER,
        "__threadfence();",
        "",
        grid=2,
        argument=0,
    ),
    "a plain flag": Case(
        "race_global",
        """if (threadIdx.x == 0) {
    @@;                                          //!
} else if (threadIdx.x == 32) {
    while (*(volatile int*)z == 0);              //!
    y[1] = 2;
}""",
        "*(volatile int*)z = 1",
        "*z = 1",
        argument=2,
    ),
    "a volatile counter that several threads increase": Case(
        "race_global",
        "@@;                      //!",
        "atomicAdd(z, 1)",
        "++*(volatile int*)z",
        grid=2,
        argument=2,
    ),
    "an atomic counter read by plain loads": Case(
        "race_global",
        """atomicAdd(z, 1);                      //!
if (threadIdx.x == 63) y[0] = @@;                //!""",
        "*(volatile int*)z",
        "*z",
        argument=2,
    ),
    "an atomic float sum, initialised by one block": Case(
        "race_global",
        """if (blockIdx.x == 0 && threadIdx.x == 0) @@;  //!
atomicAdd(&y[0], x[threadIdx.x]);                //!""",
        "y[1] = 0",
        "y[0] = 0",
        grid=3,
        argument=0,
    ),
    "a work list whose items belong to two takers": Case(
        "race_global",
        """for (;;) {
    const int i = atomicAdd(z, 1);
    if (i >= 100) break;
    y[@@] = threadIdx.x + 64 * blockIdx.x;       //!
}""",
        "i",
        "i / 2",
        grid=2,
        argument=0,
    ),
    "a work list of blocks whose results overlap": Case(
        "race_global",
        """__shared__ int item;
for (;;) {
    if (threadIdx.x == 0) item = atomicAdd(z, 1);
    __syncthreads();
    const int i = item;
    __syncthreads();
    if (i >= 12) break;
    y[@@ * i + threadIdx.x] = blockIdx.x;        //!
}""",
        "64",
        "63",
        grid=3,
        argument=0,
    ),
    "a barrier of the grid without fences": Case(
        "race_global",
        """y[blockIdx.x * 64 + threadIdx.x] = x[threadIdx.x];   //!
__syncthreads();
if (threadIdx.x == 0) {
    @@
    atomicAdd(z, 1);
    while (*(volatile int*)z < gridDim.x);
    __threadfence();
}
__syncthreads();
const int o = (blockIdx.x + 1) % gridDim.x;
y[512 + blockIdx.x * 64 + threadIdx.x] = y[o * 64 + threadIdx.x];  //!""",
        "__threadfence();",
        "",
        grid=5,
        argument=0,
    ),
    "a barrier of the grid that only the first thread passes": Case(
        "race_global",
        """if (threadIdx.x == 0) {
    y[blockIdx.x] = x[blockIdx.x];               //!
    __threadfence();
    atomicAdd(z, 1);
    while (*(volatile int*)z < gridDim.x);
    __threadfence();
}
@@
if (threadIdx.x == 33) y[100 + blockIdx.x] = y[(blockIdx.x + 1) % gridDim.x];  //!""",
        "__syncthreads();",
        "",
        grid=4,
        argument=0,
    ),
    "all blocks store the same value": Case(
        "same_value",
        "if (threadIdx.x == @@) z[0] = 1;  //!",
        "blockIdx.x + 1000",
        "0",
        grid=4,
        argument=2,
    ),
    "a variable of the module": Case(
        "race_global",
        "@@;                      //!",
        "atomicAdd(&total, 1)",
        "total += threadIdx.x",
        grid=2,
        before="__device__ int total;\n",
    ),
    "data read as constant that the kernel writes": Case(
        "read_only",
        """const int i = threadIdx.x;
y[i] = x[i];                                     //!
__syncthreads();
y[64 + i] = @@;                                  //!""",
        "y[i ^ 1]",
        "__ldg(y + (i ^ 1))",
        argument=0,
    ),
}
