/*
races.cu: two accesses to one word, one of them a write, by threads that nothing has put in order. Before runtime.cu in
one source text; used by the checked mode.

Vector clocks (Mattern 1989; FastTrack, Flanagan and Freund 2009). The worker's clock counts meetings: a barrier, a
barrier of a warp, a flag. A thread's time is the clock at its last one, and no two threads ever have the same time.
seen[t][u] is the last time of u that t has seen. Each granule of memory carries marks of its last write and of two
reads. An access is in order with a mark if the mark is its own thread's, if the thread has seen it, or if it is older
than a barrier of the whole block. Checked launches run on one core, so the clock goes on from block to block.
Atomic and volatile accesses are flags: they never race among themselves, a write of one releases what its thread has
seen, a read acquires what was released. All flags count as one, so some races are missed and none is invented.
*/

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 BARRIERS = 16;
constexpr u32 FLAGS = BARRIERS, WORK = BARRIERS + 1;        // rows of `meetings` after those of the barriers

static __device__ __forceinline__ u64* row_of(Block* b, u32 row) { return (u64*)b->meetings + (u64)row * b->nthreads; }
static __device__ __forceinline__ u64* seen_by(Block* b, u32 n) { return (u64*)b->seen + (u64)n * b->nthreads; }
static __device__ __forceinline__ bool checked(Block* b) { return ((Launch*)b->launch)->check; }

static __device__ void join(Block* b, u64* to, const u64* from) {
    for (u32 n = 0; n < b->nthreads; ++n) to[n] = to[n] > from[n] ? to[n] : from[n];
}

// ---- meetings -----------------------------------------------------------------------------------

// Thread n's time moves on: what it does from now is not what others have seen of it.
static __device__ void step(Block* b, u32 n) {
    if (checked(b)) ((u64*)b->times)[n] = ++b->clock;
}

static __device__ void begin(Block* b) {
    b->began = b->epoch = b->clock;
    b->acquired = 0;
    for (u32 n = 0; n < b->nthreads; ++n) step(b, n);
}

// Thread n tells a row of `meetings` all that it has seen, and its own time.
static __device__ void tell(Block* b, u32 row, u32 n) {
    u64* to = row_of(b, row);
    join(b, to, seen_by(b, n));
    to[n] = ((u64*)b->times)[n];
}

static __device__ void forget(Block* b, u32 row) {
    if (checked(b)) for (u32 n = 0; n < b->nthreads; ++n) row_of(b, row)[n] = 0;
}

// At a barrier with a count: what thread n brings, and what it takes away.
static __device__ void announce(Block* b, u32 barrier, u32 n) {
    if (!checked(b)) return;
    tell(b, barrier, n);
    step(b, n);
}

static __device__ void hear(Block* b, u32 barrier, u32 n) {
    if (!checked(b)) return;
    join(b, seen_by(b, n), row_of(b, barrier));
    step(b, n);
}

// All of the block wait at one barrier: everything so far is in order with everything to come.
static __device__ void meet_all(Block* b) { b->epoch = b->clock; }

// Lanes `here` of the warp that begins at `first` meet.
static __device__ void meet_warp(Block* b, u32 first, u32 here) {
    if (!checked(b)) return;
    forget(b, WORK);
    for (u32 m = here; m; m &= m - 1) tell(b, WORK, first + __ffs(m) - 1);
    for (u32 m = here; m; m &= m - 1) hear(b, WORK, first + __ffs(m) - 1);
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

// Where to keep a read, so that whoever writes next meets one of another thread: two are kept, of different blocks, or
// else of different warps, where there are such.
static __device__ Mark* place_of(Block* b, Mark* reads, const Access& now) {
    u64 time[2];
    u32 thread[2];
    for (u32 k = 0; k < 2; ++k) {
        time[k] = reads[k].stamp >> 11;
        thread[k] = reads[k].stamp >> 1 & 1023;
        if (time[k] <= ((Launch*)b->launch)->began || (now.code & 4 && time[k] <= b->epoch)) return reads + k;
        if (time[k] > b->began && thread[k] == now.thread) return reads + k;
    }
    const bool here = time[0] > b->began;
    if (here != time[1] > b->began) return here ? reads : reads + 1;
    if (!here) return reads + 1;
    for (u32 k = 0; k < 2; ++k) if (time[k] <= b->epoch) return reads + k;
    return thread[0] / 32 != thread[1] / 32 && thread[0] / 32 == now.thread / 32 ? reads : reads + 1;
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
    for (u64 k = at / b->granule; k <= (at + size - 1) / b->granule; ++k) {
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
        tell(b, FLAGS, thread);
        step(b, thread);
        if (!(code & 4)) launch->released = b->clock;
    }
    return E_NONE;
}
