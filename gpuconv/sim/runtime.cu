/*
runtime.cu: the simulator's scheduler. It is compiled like the kernels (NVRTC, PTX, LLVM) and runs
on the CPU.

A worker takes blocks until none is left. The threads of a block are coroutines: each runs alone up
to a collective, and a collective completes once all threads that take part in it wait there. Warps
advance as far as they can, one after another, then the barriers are examined. If no thread can
advance and not all are done, that is a deadlock. A block whose threads only wait for a change of
memory makes room for others, so several blocks can be under way at once. The text of this file
follows the records and codes of layout.py, and clocks.cu and races.cu.
*/

extern "C" __device__ void sim_resume(u64 frame);
extern "C" __device__ void sim_create(u64 entry, u64 block, u64 thread, u64 frame);
extern "C" __device__ void sim_row(u64 entry, u64 block, u64 y, u64 z);
extern "C" __device__ void sim_get_mode(u64 word);
extern "C" __device__ void sim_set_mode(u64 word);

enum Phase : u32 { IDLE, RUNNING, FINISHED };

constexpr u32 UNDEFINED = 0x7fffdead;       // what a shuffle reads from a lane that takes no part
constexpr u32 MAX_IDLE_ROUNDS = 1 << 20;    // rounds in which threads only poll, before a deadlock
constexpr u32 SPREAD = 4;                   // blocks under way at once where threads yield
constexpr u32 MODE_PLAIN = 0x1f80, MODE_FLUSH = 0x9fc0;    // x86 MXCSR, the latter flushes to zero

static __device__ void exchange_matrices(Thread* warp);    // matrices.cu
static __device__ void drop_copies(Block* b, u32 n);       // copies.cu

static __device__ __forceinline__ Thread* thread_of(Block* b, u32 n) {
    return (Thread*)b->threads + n;
}

// Record the error of thread n, at an instruction, for which its block cannot go on.
extern "C" __device__ void sim_fail(u64 block, u32 n, u32 kind, u32 site, u64 address, u64 value) {
    Block* b = (Block*)block;
    if (b->error) return;
    b->error = kind;
    record(worker_of(b), b->index, n, kind, site, address, value);
}

static __device__ void fail(Block* b, u32 n, u32 kind, u64 address, u64 value) {
    sim_fail((u64)b, n, kind, thread_of(b, n)->site, address, value);
}

// An error after which a checked kernel can go on.
static __device__ __noinline__ void complain(Block* b, u32 n, u32 kind, u64 address, u64 value) {
    if (!checked(b)) fail(b, n, kind, address, value);
    else record(worker_of(b), b->index, n, kind, thread_of(b, n)->site, address, value);
}

// ---- warp-level collectives: `members` are the lanes that take part ----------------------------

// MODE, the same for all: up, down, butterfly, index. members: a constant where all take part, so
// that the most frequent case has no branches.
template <u32 MODE> static __device__ __forceinline__ void shuffle(Thread* warp, u32 members) {
    for (u32 lane = 0; lane < 32; ++lane) {
        if (!(members >> lane & 1)) continue;
        Thread* t = warp + lane;
        const u32 lane_mask = t->c >> 8 & 31, clamp = t->c & 31, b = t->b & 31;
        const int low = lane & lane_mask, high = low | (clamp & ~lane_mask);
        int from = MODE == 0 ? lane - b : MODE == 1 ? lane + b : MODE == 2 ? lane ^ b
                 : low | (b & ~lane_mask);
        const bool inside = MODE == 0 ? from >= high : from <= high;
        if (!inside) from = lane;
        t->pred = inside;
        t->result = members >> from & 1 ? warp[from].value : UNDEFINED;
    }
}

static __device__ __forceinline__ void shuffle(Thread* warp, u32 members, u32 mode) {
    if (mode == 0) shuffle<0>(warp, members);
    if (mode == 1) shuffle<1>(warp, members);
    if (mode == 2) shuffle<2>(warp, members);
    if (mode == 3) shuffle<3>(warp, members);
}

// Give each lane the word (doubt.py) of what it gets; complain of a width that is none.
static __device__ __noinline__ void check_shuffle(Block* b, u32 first, u32 members) {
    Thread* warp = thread_of(b, first);
    u32 words[32];
    for (u32 m = members; m; m &= m - 1) {
        const u32 lane = __ffs(m) - 1, segment = warp[lane].c >> 8 & 31, mode = warp[lane].a;
        const u32 clamp = warp[lane].c & 31, by = warp[lane].b & 31, width = 32 - segment;
        const int low = lane & segment, high = low | (clamp & ~segment);
        const int from = mode == 0 ? lane - by : mode == 1 ? lane + by : mode == 2 ? lane ^ by
                       : low | (by & ~segment);
        const bool inside = mode == 0 ? from >= high : from <= high;
        const u32* reported = (const u32*)worker_of(b)->reported;
        const u32 site = warp[lane].site, get = inside ? from : lane;
        words[lane] = members >> get & 1 ? warp[get].doubt : 1u << 31 | site << 11 | 1 << 10 | get << 5 | lane;
        if (reported && reported[site] >> E_MASK & 1) words[lane] = 0;    // the mask is wrong
        else if (width & (width - 1)) complain(b, first + lane, E_SHUFFLE, lane, 1000 + width);
    }
    for (u32 m = members; m; m &= m - 1) warp[__ffs(m) - 1].doubt = words[__ffs(m) - 1];
}

static __device__ void vote(Thread* warp, u32 members) {
    u32 ballot = 0;
    for (u32 m = members; m; m &= m - 1) {
        const u32 lane = __ffs(m) - 1;
        ballot |= (u32)(warp[lane].pred != 0) << lane;
    }
    for (u32 m = members; m; m &= m - 1) {
        Thread* t = warp + __ffs(m) - 1;
        t->result = t->a == 0 ? ballot == members : t->a == 1 ? ballot != 0
                  : t->a == 2 ? ballot == members || ballot == 0 : ballot;
    }
}

static __device__ void match(Thread* warp, u32 members) {
    for (u32 m = members; m; m &= m - 1) {
        Thread* t = warp + __ffs(m) - 1;
        u32 same = 0;
        for (u32 o = members; o; o &= o - 1)
            if (warp[__ffs(o) - 1].value == t->value) same |= o & -o;
        t->pred = same == members;
        t->result = t->a && !t->pred ? 0 : same;
    }
}

static __device__ u32 combine(u32 op, bool is_signed, u32 x, u32 y) {
    if (op == 0) return x + y;
    if (op == 1) return is_signed ? ((int)x < (int)y ? x : y) : (x < y ? x : y);
    if (op == 2) return is_signed ? ((int)x > (int)y ? x : y) : (x > y ? x : y);
    return op == 3 ? x & y : op == 4 ? x | y : x ^ y;
}

static __device__ void redux(Thread* warp, u32 members) {
    Thread* first = warp + __ffs(members) - 1;
    u32 total = (u32)first->value;
    for (u32 m = members & (members - 1); m; m &= m - 1)
        total = combine(first->a, first->b, total, (u32)warp[__ffs(m) - 1].value);
    for (u32 m = members; m; m &= m - 1) warp[__ffs(m) - 1].result = total;
}

// Whether all lanes take part in a matrix instruction, and in the same one.
static __device__ bool whole_warp(Block* b, u32 first, u32 members) {
    const Thread* warp = thread_of(b, first);
    bool same = members == ~0u;
    for (u32 lane = 1; same && lane < 32; ++lane) same = warp[lane].site == warp->site;
    if (!same) fail(b, first + __ffs(members) - 1, E_MATRIX, members, 0);
    return same;
}

static __device__ void complete(Block* b, u32 first, u32 members, u32 state) {
    Thread* warp = thread_of(b, first);
    if (state == S_SHUFFLE) {
        if (checked(b)) check_shuffle(b, first, members);
        const u32 mode = warp[__ffs(members) - 1].a;
        if (members == ~0u) shuffle(warp, ~0u, mode); else shuffle(warp, members, mode);
    }
    if (state == S_VOTE) vote(warp, members);
    if (state == S_MATCH) match(warp, members);
    if (state == S_REDUX) redux(warp, members);
    if (state == S_MATRIX && whole_warp(b, first, members)) exchange_matrices(warp);
    if (state == S_WARP && checked(b)) {
        const u32 rest = b->nthreads - first;
        synchronise_warp(b, first, members, rest < 32 ? (1u << rest) - 1 : ~0u);
    }
}

// Complete every collective of this warp whose members have all arrived. Returns whether there was
// one.
static __device__ bool resolve_warp(Block* b, u32 first, u32 lanes) {
    Thread* warp = thread_of(b, first);
    u32 seen = 0, done = 0;
    bool moved = false;
    for (u32 lane = 0; lane < lanes; ++lane) if (warp[lane].state == S_DONE) done |= 1u << lane;
    for (u32 lane = 0; lane < lanes; ++lane) {
        Thread* t = warp + lane;
        if (t->state < S_WARP || t->state > S_REDUX || seen >> lane & 1) continue;
        if (!(t->mask >> lane & 1)) {
            complain(b, first + lane, E_MASK, t->mask, lane);
            if (b->error) return false;
            t->mask |= 1u << lane;
        }
        const u32 existing = lanes == 32 ? ~0u : (1u << lanes) - 1;
        const u32 needed = t->mask & existing & ~done;
        u32 here = 0;
        for (u32 m = needed; m; m &= m - 1) {
            const Thread* o = warp + __ffs(m) - 1;
            if (o->state == t->state && o->mask == t->mask && o->a == t->a) here |= m & -m;
        }
        seen |= here;
        if (here != needed) continue;
        complete(b, first, here, t->state);
        for (u32 m = here; m; m &= m - 1) warp[__ffs(m) - 1].state = S_RUN;
        moved = true;
    }
    return moved;
}

// activemask completes when no lane of the warp can continue. It gives the lanes at the same
// instruction.
static __device__ bool resolve_active(Block* b, u32 first, u32 lanes) {
    Thread* warp = thread_of(b, first);
    for (u32 lane = 0; lane < lanes; ++lane) {
        if (warp[lane].state != S_ACTIVE) continue;
        u32 together = 0;
        for (u32 o = lane; o < lanes; ++o)
            if (warp[o].state == S_ACTIVE && warp[o].site == warp[lane].site) together |= 1u << o;
        for (u32 m = together; m; m &= m - 1) {
            warp[__ffs(m) - 1].result = together;
            warp[__ffs(m) - 1].state = S_RUN;
        }
        return true;
    }
    return false;
}

// ---- barriers of the block ----------------------------------------------------------------------

struct Barriers { u32 arrived[BARRIERS], waiting[BARRIERS], count[BARRIERS], votes[BARRIERS]; };
static_assert(sizeof(Barriers) == sizeof(Block::barriers), "Block.barriers: see layout.py");

// A thread arrives at a barrier: check its arguments against those of the others, and count it.
static __device__ bool arrive(Block* b, Barriers* all, u32 n, bool waits) {
    Thread* t = thread_of(b, n);
    const u32 id = t->a;
    if (id >= BARRIERS || t->b % 32) {
        fail(b, n, E_BARRIER_COUNT, id, t->b);
        return false;
    }
    if (all->arrived[id] && all->count[id] != t->b) {
        fail(b, n, E_DISAGREE, id, t->b);
        return false;
    }
    all->count[id] = t->b;
    all->arrived[id] += 1;
    all->votes[id] += waits && t->pred;
    all->waiting[id] += waits;
    if (t->b && checked(b)) arrive_at_counted(b, id, n);
    return true;
}

// Count the threads that have come to a barrier, and those that are done.
static __device__ bool arrive_all(Block* b, Barriers* all, u32* done) {
    *done = 0;
    for (u32 n = 0; n < b->nthreads; ++n) {
        Thread* t = thread_of(b, n);
        *done += t->state == S_DONE;
        if (t->state != S_BARRIER) continue;
        if (!arrive(b, all, n, true)) return false;
        t->state = S_COUNTED;
    }
    return true;
}

// Release every barrier that is complete. Returns whether there was one.
static __device__ bool resolve_barriers(Block* b, Barriers* all, u32 done) {
    bool moved = false;
    const bool check = ((Launch*)b->launch)->check;
    for (u32 id = 0; id < BARRIERS; ++id) {
        if (!all->waiting[id]) continue;
        const u32 needed = all->count[id] ? all->count[id] : b->nthreads - done;
        if (all->arrived[id] < needed) continue;
        const bool whole = all->waiting[id] == b->nthreads - (all->count[id] ? 0 : done);
        if (whole && check) synchronise_block(b);
        const bool early = !all->count[id] && done && check;
        u32 aligned_site = 0, aligned_warp = ~0u;
        for (u32 n = 0; n < b->nthreads; ++n) {
            Thread* t = thread_of(b, n);
            if (t->state != S_COUNTED || t->a != id) continue;
            if (early) complain(b, n, E_EARLY_EXIT, id, done);
            if (!t->mask) {    // aligned: the whole warp must be at one instruction
                if (aligned_warp == n / 32 && aligned_site != t->site) {
                    complain(b, n, E_DIVERGENT, id, aligned_site);
                    if (b->error) return false;
                }
                aligned_warp = n / 32;
                aligned_site = t->site;
            }
            const u32 votes = all->votes[id];
            t->result = t->c == 1 ? votes : t->c == 2 ? votes == needed : votes != 0;
            t->state = S_RUN;
            if (check && !whole) leave_counted(b, id, n);
        }
        if (check) clear(b, id);
        all->arrived[id] = all->waiting[id] = all->votes[id] = 0;
        moved = true;
    }
    return moved;
}

// ---- a block ------------------------------------------------------------------------------------

static __device__ void create_threads(Block* b, u64 entry) {
    u32 x = 0, y = 0, z = 0;
    for (u32 n = 0; n < b->nthreads; ++n) {
        Thread* t = thread_of(b, n);
        t->tid[0] = x, t->tid[1] = y, t->tid[2] = z;
        if (++x == b->ntid[0]) { x = 0; if (++y == b->ntid[1]) { y = 0; ++z; } }
        t->state = S_RUN;
        drop_copies(b, n);
        sim_create(entry, (u64)b, (u64)t, b->frames + n * b->frame_stride);
    }
}

// Run a thread until it waits or is done.
static __device__ __forceinline__ bool run_thread(Block* b, Barriers* all, u32 n) {
    Thread* t = thread_of(b, n);
    sim_resume(t->handle);
    while (t->state <= S_ARRIVE && !b->error) {
        if (t->state == S_ARRIVE && !arrive(b, all, n, false)) return false;
        t->state = S_RUN;
        sim_resume(t->handle);
    }
    return !b->error;
}

// Whether all lanes of a warp are in one state, at one instruction, with one mask and first operand.
// rest: the other operands of all, as one word.
static __device__ bool alike(const Thread* warp, u32 lanes, u64* rest) {
    const u64 *place = (const u64*)&warp->state, *what = (const u64*)&warp->mask;
    *rest = 0;
    for (u32 lane = 0; lane < lanes; ++lane) {
        const Thread* t = warp + lane;
        if (*(const u64*)&t->state != *place || *(const u64*)&t->mask != *what) return false;
        *rest |= *(const u64*)&t->b;
    }
    return true;
}

// Run a warp until each of its lanes waits for another warp or is done. Returns whether a lane
// advanced. all_run: all lanes can run, whatever their records say. plain: is increased by the lanes
// if all of them come to barrier 0 together, without a count or a reduction.
static __device__ bool run_warp(Block* b, Barriers* all, u32 first, u32 lanes, const u32* order,
                                bool all_run, u32* plain) {
    Thread* warp = thread_of(b, first);
    bool moved = false;
    for (;;) {
        bool ran = all_run;
        u32 lane = b->reverse ? lanes - 1 : 0;
        const u32 step = b->reverse ? ~0u : 1;
        for (u32 k = 0; k < lanes; ++k, lane += step) {
            const u32 now = order ? order[k] : lane;
            Thread* t = warp + now;
            if (!all_run) {
                if (t->state != S_RUN && t->state != S_YIELD) continue;
                const bool slept = t->state == S_YIELD;
                if (!run_thread(b, all, first + now)) return false;
                ran |= !slept || t->state != S_YIELD || t->a;    // a: it has taken work
            } else if (!run_thread(b, all, first + now)) return false;
        }
        moved |= ran;
        u64 rest;
        const bool same = alike(warp, lanes, &rest), collective = warp->state >= S_WARP;
        if (same && warp->state == S_BARRIER && !warp->a && !rest) *plain += lanes;
        all_run = same && lanes == 32 && !~warp->mask && collective && warp->state <= S_REDUX;
        if (all_run) {    // what the general case below would do, too
            complete(b, first, ~0u, warp->state);
            continue;
        }
        if (same && !collective) return moved;
        bool resolved = resolve_warp(b, first, lanes);
        if (b->error) return false;
        if (!resolved) resolved = resolve_active(b, first, lanes);
        if (!resolved) return moved;
        moved = true;
    }
}

static __device__ bool any_sleeper(Block* b) {
    for (u32 n = 0; n < b->nthreads; ++n) if (thread_of(b, n)->state == S_YIELD) return true;
    return false;
}

// Let every warp advance as far as it can, then examine the barriers. Returns whether a thread
// advanced other than by polling.
static __device__ bool run_round(Launch* launch, Block* b) {
    Barriers* all = (Barriers*)b->barriers;
    const u32 warps = (b->nthreads + 31) / 32;
    const u32* order = (const u32*)launch->thread_order;
    bool moved = false;
    u32 plain = 0;
    for (u32 k = 0; k < warps; ++k) {
        const u32 warp = order ? order[32 + k] : b->reverse ? warps - 1 - k : k;
        const u32 first = warp * 32, rest = b->nthreads - first, lanes = rest < 32 ? rest : 32;
        moved |= run_warp(b, all, first, lanes, lanes == 32 ? order : nullptr, b->all_run, &plain);
        if (b->error) return true;
    }
    b->all_run = plain == b->nthreads && !all->arrived[0];
    if (b->all_run) {    // what the general case below would do, too
        if (launch->check) synchronise_block(b);
        return true;
    }
    u32 done;
    if (!arrive_all(b, all, &done)) return true;
    if (done == b->nthreads) {
        b->phase = FINISHED;
        return true;
    }
    return moved | resolve_barriers(b, all, done);
}

// The block cannot go on: say so of the first thread that is not done.
static __device__ bool first_waiting(Block* b, u32 kind) {
    for (u32 n = 0; n < b->nthreads; ++n)
        if (thread_of(b, n)->state != S_DONE) { fail(b, n, kind, 0, 0); return true; }
    return false;
}

static __device__ void run_rows(u64 entry, Block* b) {
    const u32 rows = b->ntid[1], count = rows * b->ntid[2];
    for (u32 k = 0; k < count && !b->error; ++k) {
        const u32 row = b->reverse ? count - 1 - k : k;
        sim_row(entry, (u64)b, row % rows, row / rows);
    }
}

// Fill a slot's memory before its first block: with poison, and with the gaps of shared memory.
static __device__ void prepare(Launch* launch, Worker* w, Block* b) {
    for (u32 k = 0; k < (b->shared_bytes + 7) / 8; ++k) ((u64*)b->shared)[k] = ~0ull;
    for (u64 k = 0; launch->check && k < w->blank_words; ++k)
        ((u64*)b->shared_trace)[k] = ((const u64*)w->blank)[k];
    b->prepared = 1;
}

// Prepare a slot for the worker's next block. Returns whether there is one.
static __device__ bool next_block(Launch* launch, Worker* w, Block* b) {
    Queue* queue = (Queue*)w->queue;
    u64 linear = atomicAdd(&queue->next, 1ull);
    if (linear >= queue->end) return false;
    if (launch->order) linear = ((const u32*)launch->order)[linear];
    b->index = linear;
    b->ctaid[0] = linear % b->nctaid[0];
    b->ctaid[1] = linear / b->nctaid[0] % b->nctaid[1];
    b->ctaid[2] = linear / b->nctaid[0] / b->nctaid[1];
    b->phase = RUNNING;
    b->all_run = 1;
    if (!b->prepared) prepare(launch, w, b);
    if (launch->check) begin(b);
    if (launch->coroutine) {
        *(Barriers*)b->barriers = Barriers{};
        create_threads(b, launch->entry);
    }
    return true;
}

static __device__ bool going_on(const Launch* launch) { return !*(volatile const u32*)&launch->stop; }

// Run the rounds of a block until it is done, or its threads wait for a change of memory.
static __device__ bool run_rounds(Launch* launch, Block* b) {
    bool moved = false;
    while (going_on(launch)) {
        const bool now = run_round(launch, b);
        moved |= now;
        if (b->error || b->phase == FINISHED) break;
        const bool sleeps = !b->all_run && any_sleeper(b);
        if (!now && !sleeps) first_waiting(b, E_DEADLOCK);
        if (b->error || sleeps) break;
    }
    if (b->phase == FINISHED && b->shared_used) forget_all(b);
    return moved;
}

// Run the worker's blocks in turn, several at once where they yield. If all of them only poll, more
// are begun, as the one that they wait for may be among these.
static __device__ void run_in_turn(Launch* launch, Worker* w) {
    Block* slots = (Block*)w->slots;
    u32 most = 1, active = 0, idle = 0;
    bool more = true;
    while (going_on(launch)) {
        for (u32 k = 0; k < w->nslots && more && active < most; ++k) {
            if (slots[k].phase == RUNNING) continue;
            more = next_block(launch, w, slots + k);
            active += more;
        }
        if (!active) return;
        bool moved = false;
        for (u32 k = 0; k < w->nslots && going_on(launch); ++k) {
            Block* b = slots + k;
            if (b->phase != RUNNING) continue;
            moved |= run_rounds(launch, b);
            if (b->error) return;
            if (b->phase == FINISHED) { --active; break; }
        }
        if (most < SPREAD && most < w->nslots) ++most;
        idle = moved ? 0 : idle + active;
        if (moved) continue;
        if (more && most < w->nslots) most = 2 * most < w->nslots ? 2 * most : w->nslots;
        else if (idle > MAX_IDLE_ROUNDS)
            for (u32 k = 0; k < w->nslots; ++k)
                if (slots[k].phase == RUNNING) { first_waiting(slots + k, E_DEADLOCK); return; }
    }
}

// Run blocks until none is left, one has failed, or the launch is stopped.
extern "C" __device__ void sim_run(u64 worker) {
    Worker* w = (Worker*)worker;
    Launch* launch = (Launch*)w->launch;
    Block* slots = (Block*)w->slots;
    u32 before = 0, mode = launch->flush ? MODE_FLUSH : MODE_PLAIN;
    sim_get_mode((u64)&before);
    sim_set_mode((u64)&mode);
    if (launch->coroutine) run_in_turn(launch, w);
    else while (going_on(launch) && !slots->error && next_block(launch, w, slots)) {
        run_rows(launch->entry, slots);
        if (slots->shared_used) forget_all(slots);
    }
    bool failed = false;
    for (u32 k = 0; k < w->nslots; ++k) failed |= slots[k].error != 0;
    for (u32 k = 0; k < w->nslots && launch->stop == 2 && !failed; ++k)
        if (slots[k].phase == RUNNING) failed = first_waiting(slots + k, E_TIMEOUT);
    if (failed && !launch->stop) launch->stop = 1;
    sim_set_mode((u64)&before);
}

// A kernel leaves at a branch because the launch was stopped: say where, if that is asked.
extern "C" __device__ void sim_stopped(u64 block, u32 n, u32 site) {
    Block* b = (Block*)block;
    if (((Launch*)b->launch)->stop == 2) sim_fail(block, n, E_TIMEOUT, site, 0, 0);
}
