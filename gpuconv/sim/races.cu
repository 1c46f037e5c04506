/*
races.cu: race detection for checked mode. Its text follows that of clocks.cu.

A race is two accesses to one word by two threads, one of them a write, at least one of them weak
(neither atomic nor volatile), that clocks.cu does not order. A granule of memory has a Trace: marks
of its last weak write and of two weak reads. Words that atomic or volatile accesses have used have
a Flag besides: marks of these, and what they release.

Volatile accesses do not race with each other, yet two of them can go wrong. One is `v++`, whose
write may undo another thread's. The other is an exchange within a warp, without __syncwarp, unless
the value that is read decides a branch: then the thread may be waiting for it.
*/

enum Code : u32 {
    READ = 1, WRITE = 2, SHARED = 4, GENERIC = 8,
    STRONG = 16, ACQUIRE = 32, RELEASE = 64,
    UPDATE = 128,     // a volatile write of what was computed from the same word
    DATA = 256,       // a volatile access that is no flag; a weak read of constant data (ld.nc)
    ATOMIC = 512,
    BLIND = 1024,     // a write whose value is not known
    REDUCES = 2048,   // an atomic without a result (red)
};

struct Flag {
    u64 key, born;            // its Trace, and when its memory came to be
    u64 writes[2], reads[2];
    Row* row;                 // what its last write released: to its own block, and to all
    Know* know;
    u64 block;
    u64 seen;                 // mark of the last read, which has observed all writes; 0 for none
    u64 broken;               // a store was ordered after an earlier write by nothing
};

struct Access { u64 mark, address; u32 code, n, site, size; };

static __device__ __forceinline__ u64 time_of(u64 mark) { return mark >> 28; }
static __device__ __forceinline__ u32 thread_of_mark(u64 mark) { return mark >> 18 & 1023; }
static __device__ __forceinline__ u32 site_of(u64 mark) { return mark >> 1 & 0x1ffff; }

static __device__ __forceinline__ bool in_order(Block* b, u64 mark, u32 n, u64 born) {
    return before(b, time_of(mark), thread_of_mark(mark), n, born);
}

// ---- findings -----------------------------------------------------------------------------------

// Record a finding, unless there is one of its kind at this instruction. Returns where, or null.
static __device__ __noinline__ Found* record(Worker* w, u64 block, u32 n, u32 kind, u32 site,
                                             u64 address, u64 value) {
    u32* reported = (u32*)w->reported;
    if (reported && reported[site] >> kind & 1) return nullptr;
    if (reported) reported[site] |= 1u << kind;
    if (w->nfound == MAX_FOUND) return nullptr;
    Found* found = (Found*)w->found + w->nfound++;
    *found = Found{kind, site, n, 0, 0, 0, block, 0, address, value};
    return found;
}

static __device__ __noinline__ void report(Block* b, const Access& now, u32 kind, u64 other,
                                           bool wrote) {
    Worker* w = worker_of(b);
    Found* found = record(w, b->index, now.n, kind, now.site, now.address, now.size);
    if (!found) return;
    found->other_site = site_of(other);
    found->other_thread = thread_of_mark(other);
    found->other_block = is_mine(b, time_of(other)) ? b->index : owner_of(w, time_of(other));
    found->wrote = wrote | (now.code & WRITE);
}

// ---- flags --------------------------------------------------------------------------------------

static __device__ Flag* flag_at(Worker* w, const Trace* t, u64 born) {
    if (!t->flag || t->flag > w->nflags) return nullptr;
    Flag* f = (Flag*)w->flags + t->flag - 1;
    return f->key == (u64)t && f->born == born ? f : nullptr;
}

static __device__ void clear(Flag* f) {
    set(f->row, (Row*)nullptr);
    set(f->know, (Know*)nullptr);
}

static __device__ __noinline__ Flag* flag_for(Worker* w, Trace* t, u64 born) {
    if (Flag* there = flag_at(w, t, born)) return there;
    const bool old = t->flag && t->flag <= w->nflags && ((Flag*)w->flags)[t->flag - 1].key == (u64)t;
    if (!old) {
        if (w->nflags == w->flags_size) {
            const u64 size = w->flags_size ? 2 * w->flags_size : 64, words = sizeof(Flag) / 8;
            u64* larger = (u64*)sim_alloc(size * sizeof(Flag));
            for (u64 k = 0; k < w->nflags * words; ++k) larger[k] = ((u64*)w->flags)[k];
            if (w->flags_size) sim_free(w->flags);
            w->flags = (u64)larger;
            w->flags_size = size;
        }
        t->flag = (u32)++w->nflags;
    }
    Flag* f = (Flag*)w->flags + t->flag - 1;
    if (old) clear(f);
    *f = Flag{(u64)t, born};
    return f;
}

// Thread n has read the flag: its next fence acquires what was released.
static __device__ __noinline__ void offer(Block* b, u32 n, Flag* f, bool acquires) {
    Sync* s = sync_of(b, n);
    b->shared_used = 1;
    if (f->row && f->block == b->index)
        set(s->offered, join_rows(s->offered, f->row, b->nthreads));
    if (f->know) set(s->incoming, join_knows(s->incoming, f->know, b->nthreads));
    if (acquires) acquire(b, n, true);
}

// Thread n writes the flag: it releases what was published; an atomic keeps what was there.
static __device__ __noinline__ void release(Block* b, u32 n, Flag* f, u32 code) {
    if (code & RELEASE) publish(b, n, true);
    Sync* s = sync_of(b, n);
    const bool joins = code & ATOMIC;
    if (joins && f->block == b->index) set(f->row, join_rows(f->row, s->fenced, b->nthreads));
    else if (!joins || s->fenced) set(f->row, keep(s->fenced));
    if (joins) set(f->know, join_knows(f->know, s->published, b->nthreads));
    else set(f->know, keep(s->published));
    f->block = b->index;
}

// ---- accesses -----------------------------------------------------------------------------------

// In which of two places a mark goes. They are kept of different blocks, or else of different warps,
// so that a later access finds one of another thread. here: which of the two are of this block;
// bound: one up to this time concerns nobody any more.
static __device__ __forceinline__ u64* place_of(u64* marks, const bool* here, u64 mark, u64 bound,
                                                u64 epoch) {
    const u64 x = marks[0] ^ mark, y = marks[1] ^ mark;
    for (u32 k = 0; k < 2; ++k)
        if (time_of(marks[k]) <= bound || (here[k] && !((k ? y : x) >> 18 & 1023))) return marks + k;
    if (here[0] != here[1]) return marks + here[1];
    if (!here[0]) return marks + 1;
    for (u32 k = 0; k < 2; ++k) if (time_of(marks[k]) <= epoch) return marks + k;
    return marks + !((x ^ y) >> 23 & 31 && !(x >> 23 & 31));
}

static __device__ __forceinline__ void put(Block* b, u64* marks, const Access& now, u64 born) {
    bool here[2];
    for (u32 k = 0; k < 2; ++k) {
        const u64 time = time_of(marks[k]);
        here[k] = time > born && is_mine(b, time);
    }
    *place_of(marks, here, now.mark, now.code & SHARED ? b->epoch : born, b->epoch) = now.mark;
}

// Whether two volatile accesses exchange data within a warp that nothing synchronises.
static __device__ bool exchange(Block* b, u64 other, const Access& now, u64 born) {
    return now.code & DATA && other & 1 && thread_of_mark(other) / 32 == now.n / 32
        && is_mine(b, time_of(other)) && !in_order(b, other, now.n, born);
}

// Whether a strong write of the flag comes before the present of thread n: also if a strong read
// that observed it does, through any chain of atomics (observation order).
static __device__ bool is_settled(Block* b, const Flag* f, u64 mark, u32 n, u64 born) {
    return in_order(b, mark, n, born) || (f->seen && in_order(b, f->seen, n, born));
}

static __device__ __noinline__ void visit_strong(Block* b, Trace* t, const Access& now, u64 born) {
    Worker* w = worker_of(b);
    const u32 kind = now.code & SHARED ? E_RACE_SHARED : E_RACE_GLOBAL;
    if (!in_order(b, t->write, now.n, born)) report(b, now, kind, t->write, true);
    Flag* f = flag_for(w, t, born);
    for (u32 k = 0; k < 2; ++k) {
        if (now.code & WRITE && !in_order(b, t->reads[k], now.n, born))
            report(b, now, kind, t->reads[k], false);
        if (exchange(b, f->writes[k], now, born)) report(b, now, kind, f->writes[k], true);
        else if (now.code & UPDATE && !in_order(b, f->writes[k], now.n, born))
            report(b, now, kind, f->writes[k], true);
        if (now.code & WRITE && exchange(b, f->reads[k], now, born))
            report(b, now, kind, f->reads[k], false);
    }
    // who reads what a store wrote has not seen the writes before
    for (u32 k = 0; k < 2 && now.code & WRITE && !(now.code & ATOMIC); ++k)
        f->broken |= !is_settled(b, f, f->writes[k], now.n, born);
    const bool sees = now.code & READ && !(now.code & REDUCES);
    if (now.code & WRITE || sees) f->seen = sees && !f->broken ? now.mark : 0;
    if (now.code & READ) {
        if (!(now.code & WRITE)) put(b, f->reads, now, born);
        if (f->row || f->know || now.code & ACQUIRE) offer(b, now.n, f, now.code & ACQUIRE);
    }
    if (now.code & WRITE) {
        put(b, f->writes, now, born);
        const Sync* s = sync_of(b, now.n);
        if (f->row || f->know || s->fenced || now.code & RELEASE) release(b, now.n, f, now.code);
    }
}

static __device__ __forceinline__ void visit_weak(Block* b, Trace* t, const Access& now, u64 born,
                                                  u32 value) {
    const u32 kind = now.code & SHARED ? E_RACE_SHARED : E_RACE_GLOBAL;
    if (!in_order(b, t->write, now.n, born)) {
        const bool same = now.code & WRITE && !(now.code & BLIND) && t->value == value;
        report(b, now, same ? E_SAME_VALUE : kind, t->write, true);
    } else if (now.code & DATA && time_of(t->write) > born)
        report(b, now, E_READ_ONLY, t->write, true);
    if (Flag* f = t->flag ? flag_at(worker_of(b), t, born) : nullptr)
        for (u32 k = 0; k < 2; ++k) {
            if (!is_settled(b, f, f->writes[k], now.n, born)) report(b, now, kind, f->writes[k], true);
            if (now.code & WRITE && !in_order(b, f->reads[k], now.n, born))
                report(b, now, kind, f->reads[k], false);
        }
    if (!(now.code & WRITE)) {
        put(b, t->reads, now, born);
        return;
    }
    for (u32 k = 0; k < 2; ++k) {
        const u64 read = t->reads[k];
        if (!in_order(b, read, now.n, born)) report(b, now, kind, read, false);
        else if (read & 1 && time_of(read) > born && !(now.code & SHARED))
            report(b, now, E_READ_ONLY, read, false);
    }
    t->write = now.mark;
    t->value = value;
}
