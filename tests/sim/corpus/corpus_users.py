"""Kernels as they are found in programs: sums, scans, queues, locks, pipelines, groups."""

from corpus.case import Case

TICKET = "__device__ unsigned int count;\n"
QUEUE = "struct Queue { unsigned head, tail; };\n__device__ Queue q;\n"
LOCK = """struct Lock {
    int* mutex;
    __device__ void lock() { while (atomicCAS(mutex, 0, 1) != 0); __threadfence(); }
    __device__ void unlock() { __threadfence(); atomicExch(mutex, 0); }
};
"""
BLOCK_SUM = """__device__ float block_sum(float v) {
    static __shared__ float sums[32];
    for (int o = 16; o; o /= 2) v += __shfl_xor_sync(~0u, v, o);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;  //!
    __syncthreads();
    v = threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.f;  //!
    for (int o = 16; o; o /= 2) v += __shfl_xor_sync(~0u, v, o);
    return v;
}
"""
GROUPS = "#include <cooperative_groups.h>\nnamespace cg = cooperative_groups;\n"
NAMED = """__device__ void wait_at(int id) {
    asm volatile("bar.sync %0, 64;" :: "r"(id) : "memory");
}
__device__ void arrive_at(int id) {
    asm volatile("bar.arrive %0, 64;" :: "r"(id) : "memory");
}
"""

CASES = {
    "a counter that a block sets back for the next launch": Case(
        "race_global",
        """__shared__ bool last;
if (threadIdx.x == 0) {
    y[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    last = atomicInc(&count, gridDim.x) == @@;   //!
}
__syncthreads();
if (last && threadIdx.x == 0) count = 0;         //!""",
        "gridDim.x - 1",
        "0",
        grid=4,
        before=TICKET,
    ),
    "a word that two store, set back by one who saw a store": Case(
        "race_global",
        """if (threadIdx.x == 0 && blockIdx.x < 2) *(volatile int*)z = 1 + blockIdx.x;  //!
if (threadIdx.x == 0 && blockIdx.x == 2) {
    while (*(volatile int*)z == 0);
    @@;                                          //!
}""",
        "atomicExch(z, 0)",
        "z[0] = 0",
        grid=3,
        argument=2,
    ),
    "an atomic operation made of compare-and-swap, and a plain read": Case(
        "race_global",
        """int old = z[0], seen;
do {
    seen = old;
    old = atomicCAS(z, seen, max(seen, (int)x[threadIdx.x]));  //!
} while (old != seen);
c[threadIdx.x] = @@;                             //!""",
        "old",
        "z[0]",
        argument=2,
    ),
    "a queue with tickets": Case(
        "race_global",
        """if (threadIdx.x != 0) return;
for (int i = blockIdx.x / 2; i < 40; i += gridDim.x / 2) {
    if (blockIdx.x % 2 == 0) {
        const unsigned t = atomicAdd(&q.tail, 1u);
        y[t] = 3 * i;                            //!
        @@
        atomicExch(&z[t], 1);
    } else {
        const unsigned t = atomicAdd(&q.head, 1u);
        while (atomicAdd(&z[t], 0) == 0) __nanosleep(100);
        __threadfence();
        y[100 + t] = y[t];                       //!
    }
}""",
        "__threadfence();",
        "",
        grid=4,
        argument=0,
        before=QUEUE,
    ),
    "a look-back scan whose words hold sum and state, and its block's scan": Case(
        "race_shared",
        """__shared__ int b, prefix, buf[64];
unsigned long long* state = (unsigned long long*)c;
const int t = threadIdx.x;
if (t == 0) b = atomicAdd(z, 1);
__syncthreads();
buf[t] = (int)x[b * 64 + t];
__syncthreads();
for (int d = 1; d < 64; d *= 2) {
    const int more = t >= d ? buf[t - d] : 0;    //!
    __syncthreads();
    buf[t] += more;                              //!
    @@
}
if (t == 63) {
    unsigned long long total = buf[63], sum = 0;
    atomicExch(&state[b], (b ? 1ull << 32 : 2ull << 32) | total);
    for (int p = b - 1; p >= 0;) {
        const unsigned long long s = atomicAdd(&state[p], 0ull);
        if (s >> 32) { sum += (unsigned)s; --p; }
        if (s >> 32 == 2) break;
    }
    if (b) atomicExch(&state[b], 2ull << 32 | (sum + total));
    prefix = sum;
}
__syncthreads();
y[b * 64 + t] = buf[t] + prefix;""",
        "__syncthreads();",
        "",
        grid=8,
    ),
    "a persistent loop whose next item comes too early": Case(
        "race_shared",
        """__shared__ int item;
while (true) {
    if (threadIdx.x == 0) item = atomicAdd(z, 1);  //!
    __syncthreads();
    const int t = item;                          //!
    @@
    if (t >= 10) break;
    y[t * 64 + threadIdx.x] = 2 * x[t * 64 + threadIdx.x];
}""",
        "__syncthreads();",
        "",
        grid=3,
    ),
    "a lock of a class, and a word outside of it": Case(
        "race_global",
        """Lock lock{z};
float s = x[blockIdx.x * 64 + threadIdx.x];
for (int o = 16; o; o /= 2) s += __shfl_down_sync(~0u, s, o);
if (threadIdx.x % 32 == 0) {
    lock.lock();
    y[0] += s;                                   //!
    lock.unlock();
    @@
}""",
        "",
        "y[1 + blockIdx.x] = y[0];                    //!",
        grid=4,
        argument=0,
        before=LOCK,
    ),
    "two sums over a block, one after the other": Case(
        "race_shared",
        "y[threadIdx.x] = block_sum(x[threadIdx.x]); @@ y[64 + threadIdx.x] = block_sum(1.f);",
        "__syncthreads();",
        "",
        before=BLOCK_SUM,
    ),
    "producer and consumer warps": Case(
        "race_shared",
        """__shared__ float buf[2][32];
const int lane = threadIdx.x % 32;
for (int t = 0; t < 10; ++t)
    if (threadIdx.x < 32) {
        if (t >= 2) wait_at(3 + t % 2);
        buf[@@ % 2][lane] = x[t * 32 + lane];    //!
        arrive_at(1 + t % 2);
    } else {
        wait_at(1 + t % 2);
        y[t * 32 + lane] = buf[t % 2][31 - lane];  //!
        if (t + 2 < 10) arrive_at(3 + t % 2);
    }""",
        "t",
        "(t < 5 ? t : t + 1)",
        before=NAMED,
    ),
    "a memory that serves two arrays in turn": Case(
        "race_shared",
        """__shared__ union { float sums[64]; int order[64]; } u;
const int t = threadIdx.x;
u.sums[t] = x[t];
__syncthreads();
float sum = 0;
for (int k = 0; k < 64; ++k) sum += u.sums[k];   //!
@@
u.order[t] = sum > t;                            //!
__syncthreads();
y[t] = sum; z[t] = u.order[63 - t];""",
        "__syncthreads();",
        "",
    ),
    "a hash table": Case(
        "race_global",
        """unsigned slot = threadIdx.x * 2654435761u >> 26;
while (true) {
    @@                                           //!
    if (there == 0 || there == 1 + threadIdx.x % 7) break;
    slot = (slot + 1) % 64;
}
atomicAdd(&y[slot], 1);""",
        "const int there = atomicCAS(&z[slot], 0, 1 + threadIdx.x % 7);",
        "const int there = z[slot]; if (there == 0) z[slot] = 1 + threadIdx.x % 7;",
        argument=2,
        grid=2,
    ),
    "the corners of a halo": Case(
        "uninitialised",
        """__shared__ float t[10][10];
const int i = threadIdx.x % 8, j = threadIdx.x / 8;
t[j + 1][i + 1] = x[threadIdx.x];
if (i == 0) t[j + 1][0] = t[j + 1][9] = 0;
if (j == 0) t[0][i + 1] = t[9][i + 1] = 0;
if (threadIdx.x < @@) t[threadIdx.x / 2 * 9][threadIdx.x % 2 * 9] = 0;
__syncthreads();
float sum = 0;
for (int dj = 0; dj < 3; ++dj)
    for (int di = 0; di < 3; ++di) sum += t[j + dj][i + di];  //!
y[threadIdx.x] = sum;""",
        "4",
        "3",
    ),
    "a barrier of the grid, of cooperative groups": Case(
        "race_global",
        """cg::grid_group grid = cg::this_grid();
y[grid.thread_rank()] = x[grid.thread_rank()];   //!
@@.sync();
y[512 + grid.thread_rank()] = y[grid.size() - 1 - grid.thread_rank()];  //!""",
        "grid",
        "cg::this_thread_block()",
        grid=4,
        argument=0,
        before=GROUPS,
        headers=True,
    ),
    "lanes that took one branch add to a counter together": Case(
        "race_global",
        """if (x[blockIdx.x * 64 + threadIdx.x] > 40) {
    cg::coalesced_group those = cg::coalesced_threads();
    int first;
    if (those.thread_rank() == 0) first = @@;    //!
    first = those.shfl(first, 0);
    y[first + those.thread_rank()] = 1;
}""",
        "atomicAdd(z, those.size())",
        "z[0]; if (those.thread_rank() == 0) z[0] += those.size()",
        grid=4,
        argument=2,
        before=GROUPS,
        headers=True,
    ),
    "a quotient by zero, chosen by the wrong condition": Case(
        "division",
        """const int i = threadIdx.x, d = i % 3;
const int q = ((int)x[i] / d + 1) * 2;           //!
y[i] = d @@ 0 ? q : 0;""",
        "!=",
        "==",
    ),
    "a remainder by zero that half of a condition asks for": Case(
        "division",
        """const int i = threadIdx.x, d = i % 3;
const bool odd = (int)x[i] % d == 1;             //!
y[i] = (d @@) & odd;""",
        "!= 0",
        "< 3",
    ),
    "an index divided by zero": Case(
        "division",
        "y[threadIdx.x] = x[(unsigned)threadIdx.x / (n - @@) % 32u];  //!",
        "999",
        "1000",
    ),
    "a scan whose first lanes take what is not there": Case(
        "shuffle",
        """float v = x[threadIdx.x];
for (int d = 1; d < 32; d *= 2) {
    const float more = __shfl_down_sync(~0u, v, d);  //!
    if (threadIdx.x + d < @@) v += more;
}
if (threadIdx.x == 0) y[0] = v;""",
        "blockDim.x",
        "32",
        block=20,
    ),
    "lanes that use what came from past the last": Case(
        "shuffle",
        """float v = x[threadIdx.x];
v += __shfl_down_sync(~0u, v, 8);                //!
v += __shfl_down_sync(~0u, v, 4);
if (threadIdx.x < @@) y[threadIdx.x] = v;""",
        "8",
        "9",
        block=20,
    ),
    "a branch by what came from past the last lane": Case(
        "shuffle",
        """const float v = x[threadIdx.x];
const float next = __shfl_down_sync(~0u, v, 1);  //!
if (threadIdx.x < @@ && next > 3) y[threadIdx.x] = 1;""",
        "19",
        "20",
        block=20,
    ),
}
