/*
checks.cu: the function that checked mode calls before every access. Its text follows that of
runtime.cu.

The shadow memory holds one byte for every byte: 0 not written yet, 1 written, 2 where a cp.async
has yet to deliver it, 0x80 in a gap between variables.
*/

// ---- is this access of `size` bytes allowed? ---------------------------------------------------
// code: 1 reads, 2 writes, 4 shared, 8 generic, 16 strong

template <class Word>
static __device__ __forceinline__ u32 touch_word(unsigned char* shadow, u32 code, Word all) {
    Word* word = (Word*)shadow;
    if (*word & (Word)(all << 7)) return E_BOUNDS_SHARED;    // a byte of a gap is 0x80
    if (*word & (Word)(all << 1)) return E_IN_FLIGHT;
    if (code & 1 && *word != all) return E_UNINITIALISED;
    if (code & 2) *word = all;
    return E_NONE;
}

static __device__ __forceinline__ u32 touch(unsigned char* shadow, u32 size, u32 code) {
    constexpr u64 ONES = 0x0101010101010101;
    if (size == 4) return touch_word<u32>(shadow, code, (u32)ONES);
    if (size == 1) return touch_word<unsigned char>(shadow, code, 1);
    if (size == 2) return touch_word<unsigned short>(shadow, code, 0x0101);
    u32 found = touch_word<u64>(shadow, code, ONES);
    if (!found && size == 16) found = touch_word<u64>(shadow + 8, code, ONES);
    return found;
}

extern "C" __device__ u32 sim_check(u64 block, u64 address, u32 size, u32 code, u32 thread,
                                    u32 site) {
    Block* b = (Block*)block;
    const u32 align = size < 16 ? size : 16;
    if (code & 8 && address - b->shared < b->shared_bytes) {
        address -= b->shared;
        code |= 4;
    }
    if (code & 4) {
        if (address > b->shared_bytes || size > b->shared_bytes - address) return E_BOUNDS_SHARED;
        if (address % align) return E_MISALIGNED;
        const u32 found = touch((unsigned char*)b->shared_shadow + address, size, code);
        return found ? found : race(b, b->shared_trace, address, size, code, thread, site);
    }
    const Allocation* table = (const Allocation*)b->table;
    // low: the last allocation that begins at or before the address
    u64 low = 0, high = b->table_length;
    const u64 hit = b->cache;
    if (high && hit < high && table[hit].begin <= address && address < table[hit].end) low = hit;
    else {
        while (high - low > 1) {
            const u64 middle = (low + high) / 2;
            if (table[middle].begin <= address) low = middle; else high = middle;
        }
        b->cache = low;
    }
    if (!b->table_length || address < table[low].begin || address + size > table[low].end
        || address + size < address)
        return E_BOUNDS_GLOBAL;
    if (address % align) return E_MISALIGNED;
    const u64 offset = address - table[low].begin;
    unsigned char* shadow = (unsigned char*)table[low].shadow;
    const u32 found = shadow ? touch(shadow + offset, size, code) : E_NONE;
    if (found || !table[low].trace) return found;
    return race(b, table[low].trace, offset, size, code, thread, site);
}
