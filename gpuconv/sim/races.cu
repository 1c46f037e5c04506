/*
races.cu: race detection for checked mode. A race is two accesses to one word, one of them a write,
by two threads that no synchronisation orders. The text of this file precedes that of runtime.cu.

Vector clocks (Mattern 1989; FastTrack, Flanagan and Freund 2009). The worker's clock counts
synchronisations: barriers, warp barriers and flags. A thread's time is the clock at its last
synchronisation; no two threads have the same time. seen[t] is the vector clock of thread t:
seen[t][u] is the last time of u that happened before t's present. Each granule of memory carries
marks of its last write and of two reads. An access is ordered after a mark if the mark is its own
thread's, if the mark's time is in the thread's vector clock, or if it is older than the block's
last barrier. Checked launches run on one core, so the clock continues from block to block.

Atomic and volatile accesses are called flags. They never race with each other; writing a flag
releases the thread's vector clock, reading one acquires what was released. All flags count as one,
so some races are missed, but no race is reported that is none.
*/

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 BARRIERS = 16;
constexpr u32 FLAGS = BARRIERS, SCRATCH = BARRIERS + 1;    // rows of sync_clocks after the barriers

static __device__ __forceinline__ u64* row_of(Block* b, u32 row) {
    return (u64*)b->sync_clocks + (u64)row * b->nthreads;
}

static __device__ __forceinline__ u64* seen_by(Block* b, u32 n) {
    return (u64*)b->seen + (u64)n * b->nthreads;
}

static __device__ __forceinline__ bool checked(Block* b) { return ((Launch*)b->launch)->check; }

static __device__ void join(Block* b, u64* to, const u64* from) {
    for (u32 n = 0; n < b->nthreads; ++n) to[n] = to[n] > from[n] ? to[n] : from[n];
}

// ---- synchronisation ----------------------------------------------------------------------------

// Advance thread n's time: its accesses from now on are later than those that others have acquired.
static __device__ void step(Block* b, u32 n) { ((u64*)b->times)[n] = ++b->clock; }

static __device__ void begin(Block* b) {
    b->began = b->epoch = b->clock;
    b->acquired = 0;
    for (u32 n = 0; n < b->nthreads; ++n) step(b, n);
}

// Thread n joins its vector clock, with its own time, into a row of sync_clocks.
static __device__ void release(Block* b, u32 row, u32 n) {
    u64* to = row_of(b, row);
    join(b, to, seen_by(b, n));
    to[n] = ((u64*)b->times)[n];
}

static __device__ void clear(Block* b, u32 row) {
    for (u32 n = 0; n < b->nthreads; ++n) row_of(b, row)[n] = 0;
}

// Thread n arrives at a barrier with a count, and later leaves it.
static __device__ void arrive_at_counted(Block* b, u32 barrier, u32 n) {
    release(b, barrier, n);
    step(b, n);
}

static __device__ void acquire(Block* b, u32 barrier, u32 n) {
    join(b, seen_by(b, n), row_of(b, barrier));
    step(b, n);
}

// All threads of the block wait at one barrier: accesses so far are ordered before all later ones.
static __device__ void synchronise_block(Block* b) { b->epoch = b->clock; }

// A warp barrier of the lanes `here` of the warp that begins at thread `first`.
static __device__ void synchronise_warp(Block* b, u32 first, u32 here) {
    clear(b, SCRATCH);
    for (u32 m = here; m; m &= m - 1) release(b, SCRATCH, first + __ffs(m) - 1);
    for (u32 m = here; m; m &= m - 1) acquire(b, SCRATCH, first + __ffs(m) - 1);
}

// ---- accesses -----------------------------------------------------------------------------------

struct Access { u64 stamp; u32 code, thread, site; };

static __device__ bool in_order(Block* b, const Mark& mark, const Access& now) {
    const u64 time = mark.stamp >> 11;
    const u32 thread = mark.stamp >> 1 & 1023;
    if (time <= ((Launch*)b->launch)->began) return true;   // an earlier launch
    if (mark.stamp & now.stamp & 1) return true;            // both are flags
    if (time <= b->began) return now.code & 4 || time <= b->acquired;
    return time <= b->epoch || thread == now.thread || time <= seen_by(b, now.thread)[thread];
}

static __device__ u32 report(Block* b, const Mark& mark, bool wrote, const Access& now) {
    b->other_tid = mark.stamp >> 1 & 1023;
    b->other_site = mark.site;
    b->other_block = mark.block;
    b->other_wrote = wrote | (now.code & 2);
    return now.code & 4 ? E_RACE_SHARED : E_RACE_GLOBAL;
}

// Which of the two marks a read replaces. They are kept of different blocks, or else of different
// warps, where there are such reads, so that a later write finds a read of another thread.
static __device__ Mark* place_of(Block* b, Mark* reads, const Access& now) {
    const u64 launched = ((Launch*)b->launch)->began;
    u64 time[2];
    u32 thread[2];
    for (u32 k = 0; k < 2; ++k) {
        time[k] = reads[k].stamp >> 11;
        thread[k] = reads[k].stamp >> 1 & 1023;
        if (time[k] <= launched || (now.code & 4 && time[k] <= b->epoch)) return reads + k;
        if (time[k] > b->began && thread[k] == now.thread) return reads + k;
    }
    const bool here = time[0] > b->began;
    if (here != time[1] > b->began) return here ? reads : reads + 1;
    if (!here) return reads + 1;
    for (u32 k = 0; k < 2; ++k) if (time[k] <= b->epoch) return reads + k;
    const u32 warp = thread[0] / 32;
    return warp != thread[1] / 32 && warp == now.thread / 32 ? reads : reads + 1;
}

static __device__ u32 race(Block* b, u64 traces, u64 at, u32 size, u32 code, u32 thread, u32 site) {
    const bool flag = code & 16;
    Launch* launch = (Launch*)b->launch;
    if (flag && code & 1) {
        join(b, seen_by(b, thread), row_of(b, FLAGS));
        if (!(code & 4)) b->acquired = launch->released;
    }
    const Access now = {((u64*)b->times)[thread] << 11 | thread << 1 | flag, code, thread, site};
    const Mark mark = {now.stamp, site, (u32)b->index};
    const u32 shift = __ffs(b->granule) - 1;    // a power of two
    const u64 last = (at + size - 1) >> shift;
    for (u64 k = at >> shift; k <= last; ++k) {
        Mark* marks = (Mark*)((Trace*)traces + k);          // the write, two reads
        if (!in_order(b, marks[0], now)) return report(b, marks[0], true, now);
        if (!(code & 2)) {
            *place_of(b, marks + 1, now) = mark;
            continue;
        }
        for (u32 r = 1; r < 3; ++r)
            if (!in_order(b, marks[r], now)) return report(b, marks[r], false, now);
        marks[0] = mark;
    }
    if (flag && code & 2) {
        release(b, FLAGS, thread);
        step(b, thread);
        if (!(code & 4)) launch->released = b->clock;
    }
    return E_NONE;
}
