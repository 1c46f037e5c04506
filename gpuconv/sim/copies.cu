/*
copies.cu: cp.async. Each thread keeps its copies in a ring; a copy takes place when the thread
waits for its group, or when the ring is full, which is as late as the PTX ISA allows. In checked
mode its place in shared memory is marked until then. The text of this file follows that of
checks.cu.
*/

static __device__ Copy* copy_of(Block* b, u32 n, u32 k) {
    return (Copy*)b->copies + (u64)n * COPIES + k % COPIES;
}

static __device__ void mark_place(Block* b, const Copy& c, u64 mark) {
    Trace* traces = (Trace*)b->shared_trace;
    const u32 shift = b->shift;
    for (u64 k = c.to >> shift; k <= (c.to + (c.meta_to & 255) - 1) >> shift; ++k)
        traces[k].write = mark;
}

// Both accesses of a copy, in checked mode. Returns whether its place exists; what cannot be read
// becomes zeros.
static __device__ bool check_copy(Block* b, u32 n, Copy& c) {
    const u32 size = c.meta_to & 255, pieces = c.read == size ? 1 : c.read;
    const u64 meta = (c.meta_from & ~255ull) | (c.read == size ? size : 1);
    if (c.read && c.from % size) {
        sim_report((u64)b, n, E_MISALIGNED, (u32)(c.meta_from >> 28), c.from, size);
        c.read = 0;
    }
    // the place, then the source: at once if it is read whole, else byte by byte
    for (u32 k = 0; k <= (c.read ? pieces : 0); ++k) {
        const u64 at = k ? c.from + k - 1 : c.to;
        const u64 real = sim_access((u64)b, at, k ? meta : c.meta_to, n, 0, 0);
        if (!k && (real != b->shared + c.to || c.to % size)) return false;
        if (k && real != at) c.read = 0;
    }
    return true;
}

// The oldest copy of thread n takes place.
static __device__ void deliver(Block* b, u32 n) {
    Copy& c = *copy_of(b, n, thread_of(b, n)->delivered++);
    const u32 size = c.meta_to & 255;
    if (checked(b)) {
        mark_place(b, c, 0);
        check_copy(b, n, c);
    }
    u32* to = (u32*)(b->shared + c.to);
    if (c.read == size) {
        for (u32 k = 0; k < size / 4; ++k) to[k] = ((const u32*)c.from)[k];
        return;
    }
    for (u32 k = 0; k < size; ++k)
        ((unsigned char*)to)[k] = k < c.read ? ((const unsigned char*)c.from)[k] : 0;
}

// cp.async: bytes to shared memory, of which `read` come from global memory and the others are
// zeros. meta: of both accesses, as sim_access takes it.
extern "C" __device__ void sim_copy(u64 block, u32 n, u64 to, u64 from, u64 meta_to, u64 meta_from,
                                    u32 read) {
    Block* b = (Block*)block;
    Thread* t = thread_of(b, n);
    const u32 size = meta_to & 255;
    Copy c = {from, to, meta_to, meta_from, read < size ? read : size, t->group};
    if (checked(b)) {
        if (!check_copy(b, n, c)) return;
        mark_place(b, c, IN_FLIGHT);
    }
    if (t->issued - t->delivered == COPIES) deliver(b, n);
    *copy_of(b, n, t->issued++) = c;
}

extern "C" __device__ void sim_commit(u64 thread) { ++((Thread*)thread)->group; }

// Wait until at most `groups` of the committed groups are on their way.
extern "C" __device__ void sim_wait(u64 block, u32 n, u32 groups) {
    Block* b = (Block*)block;
    Thread* t = thread_of(b, n);
    while (t->delivered != t->issued && copy_of(b, n, t->delivered)->group + groups < t->group)
        deliver(b, n);
}

// A thread begins: what the one before it in this record did not wait for is forgotten.
static __device__ void drop_copies(Block* b, u32 n) {
    Thread* t = thread_of(b, n);
    for (; checked(b) && t->delivered != t->issued; ++t->delivered)
        mark_place(b, *copy_of(b, n, t->delivered), 0);
    t->issued = t->delivered = t->group = 0;
}
