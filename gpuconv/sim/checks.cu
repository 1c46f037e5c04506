/*
checks.cu: the functions that checked mode calls for every access. Its text follows that of
runtime.cu.

The shadow memory of global memory holds one byte for every byte: 0 not written yet, 1 written. In
shared memory the Trace of a granule says it; in a gap between variables its mark of a write is GAP,
where a cp.async has yet to deliver it IN_FLIGHT.
*/

constexpr u32 USED = 4;    // in Found.wrote: other_site is where the value is used
constexpr u64 GAP = ~0ull, IN_FLIGHT = ~0ull - 1;

static __device__ __forceinline__ bool touch(unsigned char* shadow, u32 size, u32 code) {
    bool written = true;
    for (u32 k = 0; k < size; ++k) {
        written &= shadow[k] != 0;
        if (code & WRITE) shadow[k] = 1;
    }
    return written || !(code & READ);
}

// Where an access goes that must not happen: it reads zeros.
static __device__ u64 nowhere(Block* b) {
    for (u32 k = 0; k < 4; ++k) b->scratch[k] = 0;
    return (u64)b->scratch;
}

// The part of the value that granule `k` of an access gets.
static __device__ __forceinline__ u32 piece(u64 v0, u64 v1, u32 k, u32 bytes) {
    const u32 bit = 8 * bytes * k;
    const u64 word = (bit < 64 ? v0 : v1) >> bit % 64;
    return bytes == 4 ? (u32)word : (u32)word & ((1u << 8 * bytes) - 1);
}

static __device__ __forceinline__ void visit(Block* b, Trace* traces, u32 shift, u64 at,
                                             const Access& now, u64 born, u64 v0, u64 v1) {
    const u64 first = at >> shift, last = (at + now.size - 1) >> shift;
    for (u64 k = first; k <= last; ++k) {
        if (now.code & STRONG) visit_strong(b, traces + k, now, born);
        else visit_weak(b, traces + k, now, born, piece(v0, v1, (u32)(k - first), 1u << shift));
    }
}

static __device__ __forceinline__ u64 shared_access(Block* b, u64 at, Access& now, u64 v0, u64 v1) {
    Worker* w = worker_of(b);
    const u32 size = now.size, align = size < 16 ? size : 16, shift = b->shift;
    Trace* traces = (Trace*)b->shared_trace;
    bool outside = at > b->shared_bytes || size > b->shared_bytes - at, waits = false;
    for (u64 k = at >> shift; !outside && k <= (at + size - 1) >> shift; ++k) {
        outside = traces[k].write == GAP;
        waits |= traces[k].write == IN_FLIGHT;
    }
    if (outside) {
        record(w, b->index, now.n, E_BOUNDS_SHARED, now.site, at, size);
        return nowhere(b);
    }
    if (at % align) {
        record(w, b->index, now.n, E_MISALIGNED, now.site, at, size);
        return b->shared + at;
    }
    if (waits) {
        record(w, b->index, now.n, E_IN_FLIGHT, now.site, at, size);
        return b->shared + at;
    }
    for (u64 k = at >> shift; now.code & READ && k <= (at + size - 1) >> shift; ++k) {
        if (time_of(traces[k].write) > b->began) continue;
        const Flag* f = flag_at(w, traces + k, b->began);
        if (f && f->writes[0]) continue;
        record(w, b->index, now.n, E_UNINITIALISED, now.site, at, size);
        break;
    }
    visit(b, traces, shift, at, now, b->began, v0, v1);
    return b->shared + at;
}

// The allocation that holds an access, or null.
static __device__ __forceinline__ const Allocation* allocation_of(Block* b, u64 at, u32 size,
                                                                  u32 argument) {
    const Worker* w = worker_of(b);
    const Allocation* table = (const Allocation*)w->table;
    const Argument* a = (const Argument*)w->arguments + argument;
    if (a->size)
        return at - a->begin < a->size && at - a->begin + size <= a->size ? table + a->row : nullptr;
    // low: the last allocation that begins at or before the address
    u64 low = 0, high = w->table_length;
    const u64 hit = b->cache;
    if (hit < high && table[hit].begin <= at && at < table[hit].end) low = hit;
    else {
        while (high - low > 1) {
            const u64 middle = (low + high) / 2;
            if (table[middle].begin <= at) low = middle; else high = middle;
        }
        b->cache = low;
    }
    const Allocation* row = table + low;
    return high && row->begin <= at && at + size <= row->end && at + size > at ? row : nullptr;
}

// Any access.
static __device__ __noinline__ u64 slow_access(Block* b, u64 at, u64 meta, u32 n, u64 v0, u64 v1) {
    Access now = {0, at, (u32)(meta >> 8) & 0xfff, n, (u32)(meta >> 28), (u32)meta & 255};
    now.mark = sync_of(b, n)->time << 28 | n << 18 | now.site << 1 | (now.code & DATA ? 1 : 0);
    if (now.code & GENERIC && at - b->shared < b->shared_bytes) {
        at -= b->shared;
        now.code |= SHARED;
        now.address = at;
    }
    if (now.code & SHARED) return shared_access(b, at, now, v0, v1);
    Worker* w = worker_of(b);
    const u32 align = now.size < 16 ? now.size : 16;
    const Allocation* row = allocation_of(b, at, now.size, (u32)(meta >> 20) & 255);
    if (!row) {
        record(w, b->index, n, E_BOUNDS_GLOBAL, now.site, at, now.size);
        return nowhere(b);
    }
    if (row->constant && now.code & WRITE) {
        record(w, b->index, n, E_CONSTANT, now.site, at, now.size);
        return nowhere(b);
    }
    if (at % align) {
        record(w, b->index, n, E_MISALIGNED, now.site, at, now.size);
        return at;
    }
    const u64 offset = at - row->begin;
    if (row->shadow && !touch((unsigned char*)row->shadow + offset, now.size, now.code))
        record(w, b->index, n, E_UNINITIALISED, now.site, at, now.size);
    if (!row->trace) return at;
    ((unsigned char*)row->touched)[offset / PAGE >> row->shift] = 1;
    visit(b, (Trace*)row->trace, row->shift, offset, now, ((Launch*)b->launch)->began, v0, v1);
    return at;
}

// ---- the usual case ------------------------------------------------------------------------------

// What orders the weak accesses of thread n in most kernels: the launch, the block's last barrier,
// and the thread itself. bound: an access up to this time concerns nobody any more.
struct Usual { u64 mark, born, began, epoch, bound; };

static __device__ __forceinline__ bool is_own(const Usual& now, u64 mark) {
    const u64 time = time_of(mark);
    return !((mark ^ now.mark) >> 18 & 1023) && time > now.began && time <= time_of(now.mark);
}

static __device__ __forceinline__ bool is_ordered(const Usual& now, u64 mark) {
    const u64 time = time_of(mark);
    return time <= now.born || (time > now.began && time <= now.epoch) || is_own(now, mark);
}

// Leave a read's mark, unless those that are there are as late and of two warps, or of this one.
static __device__ __forceinline__ void mark_read(const Usual& now, u64* reads) {
    const u64 x = reads[0] ^ now.mark, y = reads[1] ^ now.mark;
    if (!((x | y) >> 28) && ((x ^ y) >> 23 & 31 || !(x >> 23 & 31))) return;
    const bool here[2] = {time_of(reads[0]) > now.began, time_of(reads[1]) > now.began};
    *place_of(reads, here, now.mark, now.bound, now.epoch) = now.mark;
}

// Visit granules where everything is in order. Returns false, with no harm done, where it may not be.
template <bool SHARED_, bool WRITES>
static __device__ __forceinline__ bool usual_visit(const Usual& now, Trace* t, u32 count, u32 bytes,
                                                   u64 v0, u64 v1) {
    for (u32 k = 0; k < count; ++k, ++t) {
        if (t->flag || !is_ordered(now, t->write)) return false;
        if (WRITES) {
            if (!is_ordered(now, t->reads[0]) || !is_ordered(now, t->reads[1])) return false;
            if (!SHARED_ && (t->reads[0] | t->reads[1]) & 1) return false;    // read as constant data
            t->write = now.mark;
            t->value = piece(v0, v1, k, bytes);
        } else {
            if (SHARED_ && time_of(t->write) <= now.began) return false;      // not written
            if (now.mark & 1 && time_of(t->write) > now.born) return false;
            mark_read(now, t->reads);
        }
    }
    return true;
}

// meta: bytes of the access, Code << 8, 1 + the argument that the address comes from << 20, or 0
// where that is unknown, and the site << 28. v0, v1: the value to be written. Returns the address in
// this process to use.
template <bool SHARED_, bool WRITES>
static __device__ __forceinline__ u64 usual_access(u64 block, u64 at, u64 meta, u32 n, u64 v0,
                                                   u64 v1) {
    Block* b = (Block*)block;
    const u32 size = (u32)meta & 255;
    const u64 mark = sync_of(b, n)->time << 28 | n << 18 | meta >> 28 << 1 | (meta >> 16 & 1);
    const bool aligned = !(at & (size < 16 ? size - 1 : 15));
    if (SHARED_) {
        const Usual now = {mark, b->began, b->began, b->epoch, b->epoch};
        const u32 shift = b->shift;
        Trace* t = (Trace*)b->shared_trace + (at >> shift);
        if (aligned && at + size <= b->shared_bytes
            && usual_visit<SHARED_, WRITES>(now, t, size >> shift, 1u << shift, v0, v1))
            return b->shared + at;
    } else {
        const Argument* a = (const Argument*)b->usual + ((u32)(meta >> 20) & 255);
        const u64 into = at - a->begin;
        const u32 shift = a->shift;
        const Usual now = {mark, b->born, b->began, b->epoch, b->born};
        if (aligned && into < a->size && into + size <= a->size && a->trace
            && usual_visit<SHARED_, WRITES>(now, (Trace*)a->trace + (into >> shift),
                                            size >> shift, 1u << shift, v0, v1)) {
            ((unsigned char*)a->touched)[(into + a->offset) / PAGE >> shift] = 1;
            return at;
        }
    }
    return slow_access(b, at, meta, n, v0, v1);
}

extern "C" __device__ u64 sim_read_shared(u64 block, u64 at, u64 meta, u32 n) {
    return usual_access<true, false>(block, at, meta, n, 0, 0);
}

extern "C" __device__ u64 sim_read_global(u64 block, u64 at, u64 meta, u32 n) {
    return usual_access<false, false>(block, at, meta, n, 0, 0);
}

extern "C" __device__ u64 sim_write_shared(u64 block, u64 at, u64 meta, u32 n, u64 v0, u64 v1) {
    return usual_access<true, true>(block, at, meta, n, v0, v1);
}

extern "C" __device__ u64 sim_write_global(u64 block, u64 at, u64 meta, u32 n, u64 v0, u64 v1) {
    return usual_access<false, true>(block, at, meta, n, v0, v1);
}

extern "C" __device__ u64 sim_access(u64 block, u64 at, u64 meta, u32 n, u64 v0, u64 v1) {
    return slow_access((Block*)block, at, meta, n, v0, v1);
}

// The write of a compare-and-swap that succeeded; its read has been checked.
extern "C" __device__ void sim_swapped(u64 block, u64 at, u64 meta, u32 n) {
    slow_access((Block*)block, at, (meta & ~(u64)(READ << 8)) | WRITE << 8, n, 0, 0);
}

// An error at which the kernel goes on: thread n's, at an instruction.
extern "C" __device__ void sim_report(u64 block, u32 n, u32 kind, u32 site, u64 address, u64 value) {
    record(worker_of((Block*)block), ((Block*)block)->index, n, kind, site, address, value);
}

// Thread n uses, at an instruction, a value that PTX leaves open; word: of doubt.py.
extern "C" __device__ void sim_used(u64 block, u32 n, u32 word, u32 site) {
    Worker* w = worker_of((Block*)block);
    const u32 lane = word & 31, source = word >> 5 & 31, kind = word >> 10 & 1 ? E_SHUFFLE : E_DIVISION;
    Found* found = record(w, ((Block*)block)->index, n / 32 * 32 + lane, kind, word >> 11 & 0x1ffff,
                          lane, source);
    if (!found) return;
    found->other_site = site;
    found->other_thread = n;
    found->other_block = found->block;
    found->wrote = USED;
}

// ---- across workers -----------------------------------------------------------------------------

static __device__ bool recent(const Launch* launch, u64 mark) { return time_of(mark) > launch->began; }

static __device__ void clash(Worker* w, Worker* o, u64 mark, u64 other, u32 kind, u32 wrote, u64 at,
                             u32 size) {
    const Launch* launch = (const Launch*)w->launch;
    if (!recent(launch, mark) || !recent(launch, other)) return;
    Found* found = record(w, owner_of(w, time_of(mark)), thread_of_mark(mark), kind, site_of(mark),
                          at, size);
    if (!found) return;
    found->other_site = site_of(other);
    found->other_thread = thread_of_mark(other);
    found->other_block = owner_of(o, time_of(other));
    found->wrote = wrote;
}

// Races between the blocks of two workers, none of which waits for another. Recorded with worker w,
// whose blocks come later in order than those of o.
extern "C" __device__ void sim_merge(u64 w_, u64 o_) {
    Worker *w = (Worker*)w_, *o = (Worker*)o_;
    const u64 born = ((const Launch*)w->launch)->began;
    for (u64 r = 0; r < w->table_length; ++r) {
        const Allocation *mine = (Allocation*)w->table + r, *theirs = (Allocation*)o->table + r;
        const u32 granule = 1u << mine->shift;
        const u64 count = mine->trace ? (mine->end - mine->begin + granule - 1) / granule : 0;
        for (u64 page = 0; page * PAGE < count; ++page) {
            if (!((char*)mine->touched)[page] || !((char*)theirs->touched)[page]) continue;
            const u64 end = (page + 1) * PAGE < count ? (page + 1) * PAGE : count;
            for (u64 k = page * PAGE; k < end; ++k) {
                const Trace *x = (Trace*)mine->trace + k, *y = (Trace*)theirs->trace + k;
                const u64 at = mine->begin + k * granule;
                const Flag *f = flag_at(w, x, born), *g = flag_at(o, y, born);
                const u32 same = x->value == y->value ? E_SAME_VALUE : E_RACE_GLOBAL;
                clash(w, o, x->write, y->write, same, 3, at, granule);
                for (u32 j = 0; j < 2; ++j) {
                    clash(w, o, x->write, y->reads[j], E_RACE_GLOBAL, 2, at, granule);
                    clash(w, o, x->reads[j], y->write, E_RACE_GLOBAL, 1, at, granule);
                    if (g) {
                        clash(w, o, x->write, g->writes[j], E_RACE_GLOBAL, 3, at, granule);
                        clash(w, o, x->write, g->reads[j], E_RACE_GLOBAL, 2, at, granule);
                        for (u32 i = 0; i < 2; ++i)
                            clash(w, o, x->reads[i], g->writes[j], E_RACE_GLOBAL, 1, at, granule);
                    }
                    if (f) {
                        clash(w, o, f->writes[j], y->write, E_RACE_GLOBAL, 3, at, granule);
                        clash(w, o, f->reads[j], y->write, E_RACE_GLOBAL, 1, at, granule);
                        for (u32 i = 0; i < 2; ++i)
                            clash(w, o, f->writes[j], y->reads[i], E_RACE_GLOBAL, 2, at, granule);
                    }
                }
            }
        }
    }
}

// Free what a worker has allocated, and forget its flags.
extern "C" __device__ void sim_release(u64 w_) {
    Worker* w = (Worker*)w_;
    for (u64 k = 0; k < w->nflags; ++k) clear((Flag*)w->flags + k);
    for (u32 k = 0; k < w->nslots; ++k) {
        Block* b = (Block*)w->slots + k;
        if (b->shared_used && b->phase) forget_all(b);
    }
    if (w->flags_size) sim_free(w->flags);
    if (w->owners_size) sim_free(w->owners);
    w->flags = w->nflags = w->flags_size = w->owners = w->owners_size = 0;
}
