"""Wrong addresses: out of bounds, freed, null, constant, misaligned, never written."""

import numpy as np
from corpus.case import Case


def _arrays(sim, y=1000, x=1024):
    numbers = np.arange(max(x, 1), dtype=np.float32)[:x]
    return (sim.zeros(y), sim.asarray(numbers), sim.zeros(1024, np.int32),
            sim.zeros(1024, np.uint8), 1000)  # fmt: skip


def _view(sim):
    """y is the middle of a larger array."""
    whole = sim.zeros(300)
    return (whole[100:200], *_arrays(sim)[1:])


def _neighbours(sim, alive):
    """c holds the distance, in floats, from y's begin to another array, kept in `alive`."""
    y, other = sim.zeros(64), sim.zeros(64)
    alive[:] = [other]
    distance = np.array([(other.ptr - y.ptr) // 4, 5], np.int64)
    return (y, sim.asarray(np.arange(64, dtype=np.float32)), sim.zeros(64, np.int32),
            sim.asarray(distance.view(np.uint8)), 1000)  # fmt: skip


def _pointers(sim, alive):
    """c holds the address of an array, which has been freed unless it is kept in `alive`."""
    kept = sim.asarray(np.arange(64, dtype=np.float32))
    freed = sim.asarray(np.arange(64, dtype=np.float32))
    table = np.array([kept.ptr, freed.ptr, 0], np.uint64)
    alive[:] = [kept]
    return (sim.zeros(64), sim.asarray(np.zeros(64, np.float32)), sim.zeros(64, np.int32),
            sim.asarray(table.view(np.uint8)), 1000)  # fmt: skip


def _pad(sim):
    return (sim.zeros(997), *_arrays(sim)[1:])


def _empty(sim):
    """The last 24 elements of x have never been written."""
    x = sim.empty(1024)
    x[:1000].set(np.arange(1000, dtype=np.float32))
    return (sim.zeros(1024), x, *_arrays(sim)[2:])


_ALIVE: list = []
POINTERS = """
const float* const* p = (const float* const*)c;
y[threadIdx.x] = p[@@][threadIdx.x];             //!"""
CASES = {
    "one thread too many": Case(
        "bounds_global",
        "const int i = blockIdx.x * 64 + threadIdx.x;\nif (i < @@) y[i] = 1;  //!",
        "n",
        "n + 1",
        grid=16,
        argument=0,
        args=_arrays,
    ),
    "no guard at all": Case(
        "bounds_global",
        "const int i = blockIdx.x * 64 + threadIdx.x;\n@@ y[i] = 2 * x[i];              //!",
        "if (i < 997)",
        "",
        grid=16,
        argument=0,
        args=_pad,
    ),
    "one before the first": Case(
        "bounds_global",
        "y[threadIdx.x] = x[(int)threadIdx.x - @@];  //!",
        "0",
        "1",
        argument=1,
    ),
    "a stencil without its guard on the right": Case(
        "bounds_global",
        """const int i = blockIdx.x * 64 + threadIdx.x;
if (i < 1024) y[i] = x[i] + (i + 1 < @@ ? x[i + 1] : 0);   //!""",
        "1024",
        "1025",
        grid=16,
        argument=1,
    ),
    "a vector at the edge": Case(
        "bounds_global",
        "((float4*)y)[threadIdx.x + @@] = make_float4(1, 2, 3, 4);  //!",
        "186",
        "187",
        argument=0,
        args=_arrays,
    ),
    "rows and columns exchanged": Case(
        "bounds_global",
        "y[@@] = threadIdx.x;            //!",
        "threadIdx.y * 100 + threadIdx.x",
        "threadIdx.x * 100 + threadIdx.y",
        block=(20, 10),
        argument=0,
        args=_arrays,
    ),
    "past a view of a larger array": Case(
        "bounds_global",
        "y[threadIdx.x + @@] = 1;        //!",
        "36",
        "37",
        argument=0,
        args=_view,
    ),
    "before a view of a larger array": Case(
        "bounds_global",
        "y[(int)threadIdx.x - @@] = 1;   //!",
        "0",
        "1",
        argument=0,
        args=_view,
    ),
    "exactly inside another array": Case(
        "bounds_global",
        "const long long far = ((const long long*)c)[@@];\ny[threadIdx.x % 8 + far] = 1;  //!",
        "1",
        "0",
        block=8,
        argument=0,
        args=lambda sim: _neighbours(sim, _ALIVE),
    ),
    "an index that has overflowed": Case(
        "bounds_global",
        "const int i = @@;\ny[i] = x[0];                     //!",
        "threadIdx.x * 15",
        "threadIdx.x * 100000000",
        argument=0,
    ),
    "an atomic out of bounds": Case(
        "bounds_global",
        "atomicAdd(&z[@@], 1);           //!",
        "threadIdx.x * 16",
        "threadIdx.x * 17",
        argument=2,
    ),
    "a null pointer": Case(
        "null",
        POINTERS,
        "0",
        "2",
        args=lambda sim: _pointers(sim, _ALIVE),
    ),
    "a freed array": Case(
        "freed",
        POINTERS,
        "0",
        "1",
        args=lambda sim: _pointers(sim, _ALIVE),
    ),
    "a write to constant memory": Case(
        "constant",
        "const int t = threadIdx.x;\nfloat* to = @@;\nto[t] = x[t];                    //!",
        "y",
        "t < n ? (float*)table : y",
        before="__constant__ float table[64] = {1, 2, 3};\n",
    ),
    "shared memory, one past the end": Case(
        "bounds_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
s[t + @@] = x[t];                                //!
__syncthreads(); if (t > 0) y[t] = s[t];""",
        "0",
        "1",
    ),
    "shared memory, into the next variable": Case(
        "bounds_shared",
        """__shared__ float a[64], b[64]; const int t = threadIdx.x;
a[t] = x[t]; b[t] = x[t + 1];
__syncthreads();
y[t] = a[t + @@] + b[t];                         //!""",
        "0",
        "1",
    ),
    "shared memory, before the first": Case(
        "bounds_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
s[t] = x[t];
__syncthreads();
y[t] = s[t - @@];                                //!""",
        "0",
        "1",
    ),
    "shared memory, too little asked for": Case(
        "bounds_shared",
        """extern __shared__ float s[]; const int t = threadIdx.x;
s[t + @@] = x[t];                                //!
__syncthreads();
y[t] = s[t + @@];                                //!""",
        "16",
        "32",
        shared=4 * 80,
    ),
    "a halo that the tile has no room for": Case(
        "bounds_shared",
        """__shared__ float s[@@]; const int t = threadIdx.x;
s[t + 1] = x[t + 1];                             //!
if (t < 2) s[t * 65] = x[t * 65];                //!
__syncthreads();
y[t] = s[t] + s[t + 1] + s[t + 2];               //!""",
        "66",
        "64",
    ),
    "a local array": Case(
        "bounds_local",
        """float a[8];
for (int i = 0; i < 8; ++i) a[i] = x[i];
a[n & @@] = 9;                                   //!
y[threadIdx.x] = a[(n + 1) & 7] + a[n & 3];""",
        "7",
        "1023",
        block=1,
    ),
    "a local array that was not filled": Case(
        "uninitialised",
        """float a[8];
for (int i = 0; i < @@; ++i) a[(i + n) & 7] = x[i];
y[threadIdx.x] = a[(n / 2) & 7] + a[(n + 7) & 7];  //!""",
        "8",
        "7",
        block=1,
    ),
    "a vector from an odd place": Case(
        "misaligned",
        """const float4 v = *(const float4*)(x + 4 * threadIdx.x + @@);    //!
y[threadIdx.x] = v.x + v.w;""",
        "4",
        "2",
        argument=1,
    ),
    "a pair from an odd place": Case(
        "misaligned",
        "*(float2*)(y + @@ * threadIdx.x) = make_float2(1, 2);  //!",
        "2",
        "3",
        argument=0,
    ),
    "a word from bytes": Case(
        "misaligned",
        "z[threadIdx.x] = *(const int*)(c + @@ * threadIdx.x);  //!",
        "8",
        "6",
        argument=3,
    ),
    "a vector in shared memory from an odd place": Case(
        "misaligned",
        """__shared__ __align__(16) float s[260]; const int t = threadIdx.x;
for (int i = t; i < 260; i += 64) s[i] = x[i];
__syncthreads();
const float4 v = *(const float4*)(s + 4 * t + @@);    //!
y[t] = v.x + v.w;""",
        "4",
        "1",
    ),
    "a vector written to shared memory at an odd place": Case(
        "misaligned",
        """__shared__ __align__(16) float s[260]; const int t = threadIdx.x;
for (int i = t; i < 260; i += 64) s[i] = x[i];
__syncthreads();
*(float2*)(s + 4 * t + @@) = make_float2(t, 1);       //!
__syncthreads();
y[t] = s[t];""",
        "2",
        "1",
    ),
    "an array that was never written": Case(
        "uninitialised",
        "y[threadIdx.x] = x[threadIdx.x + @@];  //!",
        "936",
        "937",
        argument=1,
        args=_empty,
    ),
    "shared memory that was not filled": Case(
        "uninitialised",
        """__shared__ float s[64]; const int t = threadIdx.x;
if (t @@) s[t] = x[t];
__syncthreads(); y[t] = s[63 - t];               //!""",
        ">= 0",
        "> 0",
    ),
    "shared memory, a sum that starts from nothing": Case(
        "uninitialised",
        """__shared__ int m; @@
__syncthreads();
atomicAdd(&m, 1);                                //!
__syncthreads(); z[threadIdx.x] = m;""",
        "if (threadIdx.x == 0) m = 0;",
        "",
    ),
    "an integer divided by zero": Case(
        "division",
        "z[threadIdx.x] = 1000 / ((int)threadIdx.x + @@);  //!",
        "1",
        "0",
    ),
}
