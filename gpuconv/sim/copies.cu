/*
copies.cu: cp.async. Each thread keeps its copies in a ring; a copy takes place when the thread
waits for its group, or when the ring is full, which is as late as the PTX ISA allows. In checked
mode the shadow of its place in shared memory says until then that it is on its way. The text of
this file follows that of checks.cu.
*/

constexpr u32 IN_FLIGHT = 2;    // in the shadow of a byte, see checks.cu

static __device__ Copy* copy_of(Block* b, u32 n, u32 k) {
    return (Copy*)b->copies + (u64)n * COPIES + k % COPIES;
}

// Both ends of a copy: an error, or E_NONE.
static __device__ u32 check_copy(Block* b, u32 n, const Copy& c) {
    if (c.to % c.size) return E_MISALIGNED;
    if (c.read && c.from % c.size) return E_MISALIGNED;
    // the place, then the source: at once if it is read whole, else byte by byte
    const bool whole = c.read == c.size;
    const u32 last = whole ? 1 : c.read;
    for (u32 k = 0; k <= last; ++k) {
        const u64 address = k ? c.from + k - 1 : c.to;
        const u32 found = sim_check((u64)b, address, !k || whole ? c.size : 1, k ? 1 : 2 | 4, n,
                                    c.site);
        if (found) return found;
    }
    return E_NONE;
}

static __device__ u32 checked_copy(Block* b, u32 n, const Copy& c, u32 shadow) {
    const u32 found = check_copy(b, n, c);
    if (found) {
        const bool source = found == E_BOUNDS_GLOBAL || (found == E_MISALIGNED && !(c.to % c.size));
        sim_fail((u64)b, n, found, c.site, source ? c.from : c.to, c.size);
        return found;
    }
    for (u32 k = 0; k < c.size; ++k) ((unsigned char*)b->shared_shadow)[c.to + k] = shadow;
    return E_NONE;
}

// The oldest copy of thread n takes place.
static __device__ u32 deliver(Block* b, u32 n) {
    const Copy c = *copy_of(b, n, thread_of(b, n)->delivered++);
    if (checked(b)) {
        for (u32 k = 0; k < c.size; ++k) ((unsigned char*)b->shared_shadow)[c.to + k] = 1;
        if (const u32 found = checked_copy(b, n, c, 1)) return found;
    }
    u32* to = (u32*)(b->shared + c.to);
    if (c.read == c.size) {
        for (u32 k = 0; k < c.size / 4; ++k) to[k] = ((const u32*)c.from)[k];
        return E_NONE;
    }
    for (u32 k = 0; k < c.size; ++k)
        ((unsigned char*)to)[k] = k < c.read ? ((const unsigned char*)c.from)[k] : 0;
    return E_NONE;
}

// cp.async: `size` bytes, of which `read` come from global memory and the others are zeros.
extern "C" __device__ u32 sim_copy(u64 block, u32 n, u64 to, u64 from, u32 size, u32 read,
                                   u32 site) {
    Block* b = (Block*)block;
    Thread* t = thread_of(b, n);
    const Copy c = {from, (u32)to, size, read < size ? read : size, t->group, site};
    if (checked(b))
        if (const u32 found = checked_copy(b, n, c, IN_FLIGHT)) return found;
    if (t->issued - t->delivered == COPIES)
        if (const u32 found = deliver(b, n)) return found;
    *copy_of(b, n, t->issued++) = c;
    return E_NONE;
}

extern "C" __device__ void sim_commit(u64 thread) { ++((Thread*)thread)->group; }

// Wait until at most `groups` of the committed groups are on their way.
extern "C" __device__ u32 sim_wait(u64 block, u32 n, u32 groups) {
    Block* b = (Block*)block;
    Thread* t = thread_of(b, n);
    while (t->delivered != t->issued && copy_of(b, n, t->delivered)->group + groups < t->group)
        if (const u32 found = deliver(b, n)) return found;
    return E_NONE;
}
