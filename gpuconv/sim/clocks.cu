/*
clocks.cu: which accesses of a checked launch happen before which others, as the PTX memory model
says. Its text precedes that of races.cu.

Vector clocks (Mattern 1989; FastTrack, Flanagan and Freund 2009). A block's clock counts
synchronisations. It takes its times in chunks, so that no two blocks have a time in common and a
time names its block. An access of thread u at time T happened before thread n's present if T is
- of an earlier launch, or u is n;
- in n's block, and no later than the block's last barrier of all threads (epoch);
- in n's warp, and no later than the warp's last __syncwarp (Sync.warped, or a row of `lanes`);
- in what n has acquired: of its own block in Sync.far, of others in Sync.know.

A fence publishes: an atomic or volatile write after it releases what the thread knew at the fence,
kept with the word (Flag). A read of that word offers it, and the reader's next fence acquires it.
A block's barrier counts as a fence on the reader's side, and passes on what its threads have
published and been offered. Fences of block scope serve threads of the same block alone.

Rows and Knows are shared and never change; they live as long as something refers to them.
*/

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 BARRIERS = 16;

extern "C" __device__ u64 sim_alloc(u64 bytes);    // zeros
extern "C" __device__ void sim_free(u64 memory);

struct Row { u32 refs, block; u64 times[1]; };        // the latest known time of each thread
struct Know { u32 refs, count; Row* rows[1]; };       // rows of several blocks, sorted by block
struct Sync {
    u64 time, warped;
    Row* far;
    Know* know;
    Row* fenced;             // as of its last fence: its own block's threads, and all
    Know* published;
    Row* offered;            // what its next fence acquires: from its own block, and from all
    Know* incoming;
    u64 partial;             // its row of `lanes` holds more than `warped` says
};
struct Arrivals { Row* row; Know* know; };            // at a barrier of some threads

static __device__ __forceinline__ Worker* worker_of(Block* b) { return (Worker*)b->worker; }
static __device__ __forceinline__ Sync* sync_of(Block* b, u32 n) { return (Sync*)b->sync + n; }
static __device__ __forceinline__ u64* lanes_of(Block* b, u32 n) { return (u64*)b->lanes + n * 32; }
static __device__ __forceinline__ bool checked(Block* b) { return ((Launch*)b->launch)->check; }

// ---- time ---------------------------------------------------------------------------------------

static __device__ __noinline__ u64 new_chunk(Block* b) {
    Worker* w = worker_of(b);
    const u64 place = w->chunk - w->first;
    if (place == w->owners_size) {
        const u64 size = place ? 2 * place : 1024;
        u32* larger = (u32*)sim_alloc(4 * size);
        for (u64 k = 0; k < place; ++k) larger[k] = ((u32*)w->owners)[k];
        if (place) sim_free(w->owners);
        w->owners = (u64)larger;
        w->owners_size = size;
    }
    ((u32*)w->owners)[place] = (u32)b->index;
    return w->chunk++ * CHUNK;
}

static __device__ __forceinline__ u64 tick(Block* b) {
    if (b->clock % CHUNK == CHUNK - 1) b->clock = new_chunk(b);
    else ++b->clock;
    return b->clock;
}

static __device__ __forceinline__ u32 owner_of(const Worker* w, u64 time) {
    return ((const u32*)w->owners)[time / CHUNK - w->first];
}

static __device__ __forceinline__ bool is_mine(Block* b, u64 time) {
    const Worker* w = worker_of(b);
    return time > b->began && (w->nslots == 1 || owner_of(w, time) == (u32)b->index);
}

// ---- rows ---------------------------------------------------------------------------------------

template <class T> static __device__ T* keep(T* it) { if (it) ++it->refs; return it; }
static __device__ void drop(Row* row) { if (row && !--row->refs) sim_free((u64)row); }
static __device__ __noinline__ void drop(Know* know) {
    if (!know || --know->refs) return;
    for (u32 k = 0; k < know->count; ++k) drop(know->rows[k]);
    sim_free((u64)know);
}
template <class T> static __device__ void set(T*& to, T* owned) { T* old = to; to = owned; drop(old); }

static __device__ Row* new_row(u32 block, u32 threads) {
    Row* row = (Row*)sim_alloc(8 + 8 * threads);
    row->refs = 1;
    row->block = block;
    return row;
}

// The latest times of both rows, which are of one block.
static __device__ __noinline__ Row* join_rows(Row* a, Row* c, u32 threads) {
    if (!c || a == c) return keep(a);
    if (!a) return keep(c);
    bool less = false, more = false;
    for (u32 n = 0; n < threads; ++n) {
        less |= a->times[n] < c->times[n];
        more |= a->times[n] > c->times[n];
    }
    if (!less) return keep(a);
    if (!more) return keep(c);
    Row* row = new_row(a->block, threads);
    for (u32 n = 0; n < threads; ++n)
        row->times[n] = a->times[n] > c->times[n] ? a->times[n] : c->times[n];
    return row;
}

static __device__ __noinline__ Know* join_knows(Know* a, Know* c, u32 threads) {
    if (!c || a == c) return keep(a);
    if (!a) return keep(c);
    Know* all = (Know*)sim_alloc(8 + 8 * (a->count + c->count));
    all->refs = 1;
    bool is_a = true, is_c = true;
    u32 j = 0, k = 0;
    while (j < a->count || k < c->count) {
        Row* x = j < a->count ? a->rows[j] : nullptr;
        Row* y = k < c->count ? c->rows[k] : nullptr;
        if (x && y && x->block != y->block) { if (x->block < y->block) y = nullptr; else x = nullptr; }
        Row* row = join_rows(x, y, threads);
        is_a &= row == x;
        is_c &= row == y;
        all->rows[all->count++] = row;
        j += x != nullptr;
        k += y != nullptr;
    }
    if (!is_a && !is_c) return all;
    Know* same = keep(is_a ? a : c);
    drop(all);
    return same;
}

static __device__ Row* find(const Know* know, u32 block) {
    u32 low = 0, high = know ? know->count : 0;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (know->rows[middle]->block < block) low = middle + 1; else high = middle;
    }
    return know && low < know->count && know->rows[low]->block == block ? know->rows[low] : nullptr;
}

// ---- what a thread knows ------------------------------------------------------------------------

static __device__ u64 lane_time(Block* b, u32 n, u32 lane) {
    const Sync* s = sync_of(b, n);
    const u64 exact = s->partial ? lanes_of(b, n)[lane] : 0;
    return exact > s->warped ? exact : s->warped;
}

// Whether an access of this time by `thread` happened before thread n's present. born: the time
// before the memory came to be, for shared memory its block, for other memory the launch.
static __device__ __forceinline__ bool before(Block* b, u64 time, u32 thread, u32 n, u64 born) {
    if (time <= born) return true;
    const Sync* s = sync_of(b, n);
    if (!is_mine(b, time)) {
        if (!s->know) return false;
        const Row* row = find(s->know, owner_of(worker_of(b), time));
        return row && time <= row->times[thread];
    }
    if (time <= b->epoch || thread == n) return true;
    if (thread / 32 == n / 32 && time <= lane_time(b, n, thread % 32)) return true;
    return s->far && time <= s->far->times[thread];
}

// All that thread n knows of its block, with its own present.
static __device__ __noinline__ Row* snapshot(Block* b, u32 n) {
    const Sync* s = sync_of(b, n);
    Row* row = new_row((u32)b->index, b->nthreads);
    for (u32 u = 0; u < b->nthreads; ++u) row->times[u] = b->epoch;
    if (s->far) for (u32 u = 0; u < b->nthreads; ++u)
        if (s->far->times[u] > row->times[u]) row->times[u] = s->far->times[u];
    for (u32 u = n / 32 * 32; u < b->nthreads && u / 32 == n / 32; ++u) {
        const u64 known = lane_time(b, n, u % 32);
        if (known > row->times[u]) row->times[u] = known;
    }
    row->times[n] = s->time;
    return row;
}

static __device__ __noinline__ void learn(Block* b, u32 n, Row* row, Know* know) {
    Sync* s = sync_of(b, n);
    b->shared_used = 1;
    if (row) set(s->far, join_rows(s->far, row, b->nthreads));
    if (!know) return;
    set(s->know, join_knows(s->know, know, b->nthreads));
    if (Row* own = find(know, (u32)b->index)) set(s->far, join_rows(s->far, own, b->nthreads));
}

// ---- synchronisation ----------------------------------------------------------------------------

static __device__ void forget(Sync* s) {
    set(s->far, (Row*)nullptr);
    set(s->know, (Know*)nullptr);
    set(s->fenced, (Row*)nullptr);
    set(s->published, (Know*)nullptr);
    set(s->offered, (Row*)nullptr);
    set(s->incoming, (Know*)nullptr);
}

static __device__ void begin(Block* b) {
    b->clock = new_chunk(b);
    b->began = b->epoch = b->clock - 1;
    b->born = ((Launch*)b->launch)->began;
    b->usual = worker_of(b)->arguments;
    b->shared_used = 0;
    for (u32 n = 0; n < b->nthreads; ++n) {
        Sync* s = sync_of(b, n);
        s->time = b->clock;
        s->warped = s->partial = 0;
    }
}

static __device__ __noinline__ void forget_all(Block* b) {
    for (u32 n = 0; n < b->nthreads; ++n) forget(sync_of(b, n));
    Arrivals* all = (Arrivals*)b->arrivals;
    for (u32 id = 0; id < BARRIERS; ++id) {
        set(all[id].row, (Row*)nullptr);
        set(all[id].know, (Know*)nullptr);
    }
    b->shared_used = 0;
}

// A fence's two halves.
static __device__ void acquire(Block* b, u32 n, bool device) {
    Sync* s = sync_of(b, n);
    if (s->offered) {
        learn(b, n, s->offered, nullptr);
        set(s->offered, (Row*)nullptr);
    }
    if (device && s->incoming) {
        learn(b, n, nullptr, s->incoming);
        set(s->incoming, (Know*)nullptr);
    }
}

static __device__ __noinline__ void publish(Block* b, u32 n, bool device) {
    Sync* s = sync_of(b, n);
    b->shared_used = 1;
    set(s->fenced, snapshot(b, n));
    if (device) {
        Know* own = (Know*)sim_alloc(16);
        own->refs = own->count = 1;
        own->rows[0] = keep(s->fenced);
        set(s->published, join_knows(s->know, own, b->nthreads));
        drop(own);
    }
    s->time = tick(b);
}

// A fence of thread n: of the whole device, or of its block.
extern "C" __device__ void sim_fence(u64 block, u32 n, u32 device) {
    acquire((Block*)block, n, device);
    publish((Block*)block, n, device);
}

// The threads of a barrier share what they have acquired, published and been offered.
struct Pool { Row *far, *fenced, *offered; Know *know, *published, *incoming; };

static __device__ __noinline__ void pour_in(Block* b, Pool* pool, u32 n) {
    const Sync* s = sync_of(b, n);
    const u32 threads = b->nthreads;
    set(pool->far, join_rows(pool->far, s->far, threads));
    set(pool->fenced, join_rows(pool->fenced, s->fenced, threads));
    set(pool->offered, join_rows(pool->offered, s->offered, threads));
    set(pool->know, join_knows(pool->know, s->know, threads));
    set(pool->published, join_knows(pool->published, s->published, threads));
    set(pool->incoming, join_knows(pool->incoming, s->incoming, threads));
}

static __device__ __noinline__ void pour_out(Block* b, const Pool* pool, u32 n) {
    Sync* s = sync_of(b, n);
    set(s->far, keep(pool->far));
    set(s->fenced, keep(pool->fenced));
    set(s->offered, keep(pool->offered));
    set(s->know, keep(pool->know));
    set(s->published, keep(pool->published));
    set(s->incoming, keep(pool->incoming));
}

static __device__ void empty(Pool* pool) {
    drop(pool->far); drop(pool->fenced); drop(pool->offered);
    drop(pool->know); drop(pool->published); drop(pool->incoming);
}

static __device__ __noinline__ void share(Block* b) {
    Pool pool = {};
    for (u32 n = 0; n < b->nthreads; ++n) pour_in(b, &pool, n);
    set(pool.far, (Row*)nullptr);    // the epoch says it
    set(pool.know, join_knows(pool.know, pool.incoming, b->nthreads));
    set(pool.offered, (Row*)nullptr);
    set(pool.incoming, (Know*)nullptr);
    for (u32 n = 0; n < b->nthreads; ++n) pour_out(b, &pool, n);
    b->shared_used = pool.know || pool.fenced;
    empty(&pool);
}

// All threads of the block wait at one barrier.
static __device__ void synchronise_block(Block* b) {
    if (b->shared_used) share(b);
    b->epoch = b->clock;
    const u64 now = tick(b);
    for (u32 n = 0; n < b->nthreads; ++n) {
        Sync* s = sync_of(b, n);
        s->time = now;
        s->warped = s->partial = 0;
    }
}

// A warp barrier of the lanes `here`, of the `existing` of the warp that begins at thread `first`.
static __device__ __noinline__ void synchronise_warp(Block* b, u32 first, u32 here, u32 existing) {
    if (b->shared_used) {
        Pool pool = {};
        for (u32 m = here; m; m &= m - 1) pour_in(b, &pool, first + __ffs(m) - 1);
        for (u32 m = here; m; m &= m - 1) pour_out(b, &pool, first + __ffs(m) - 1);
        empty(&pool);
    }
    if (here != existing) {
        u64 row[32] = {};
        for (u32 m = here; m; m &= m - 1) {
            const u32 n = first + __ffs(m) - 1;
            for (u32 lane = 0; lane < 32; ++lane) {
                const u64 known = lane_time(b, n, lane);
                if (known > row[lane]) row[lane] = known;
            }
            row[n % 32] = sync_of(b, n)->time;
        }
        for (u32 m = here; m; m &= m - 1) {
            const u32 n = first + __ffs(m) - 1;
            for (u32 lane = 0; lane < 32; ++lane) lanes_of(b, n)[lane] = row[lane];
        }
    }
    const u64 past = b->clock, now = tick(b);
    for (u32 m = here; m; m &= m - 1) {
        Sync* s = sync_of(b, first + __ffs(m) - 1);
        s->time = now;
        s->partial = here != existing;
        if (here == existing) s->warped = past;
    }
}

// Thread n arrives at a barrier of some threads, and later leaves it.
static __device__ __noinline__ void arrive_at_counted(Block* b, u32 barrier, u32 n) {
    Arrivals* all = (Arrivals*)b->arrivals + barrier;
    b->shared_used = 1;
    Row* now = snapshot(b, n);
    set(all->row, join_rows(all->row, now, b->nthreads));
    drop(now);
    set(all->know, join_knows(all->know, sync_of(b, n)->know, b->nthreads));
    sync_of(b, n)->time = tick(b);
}

static __device__ __noinline__ void leave_counted(Block* b, u32 barrier, u32 n) {
    const Arrivals* all = (const Arrivals*)b->arrivals + barrier;
    acquire(b, n, true);
    learn(b, n, all->row, all->know);
    sync_of(b, n)->time = tick(b);
}

static __device__ void clear(Block* b, u32 barrier) {
    Arrivals* all = (Arrivals*)b->arrivals + barrier;
    set(all->row, (Row*)nullptr);
    set(all->know, (Know*)nullptr);
}
