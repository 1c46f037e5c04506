// copies.cuh: cp.async, copies from device memory to shared memory that pass no register and that
// nobody waits for until they are needed. Compute capability 8.0.
#pragma once

__device__ __forceinline__ unsigned shared_address(const void* to)
{
    return (unsigned)__cvta_generic_to_shared(to);
}

// Begins to copy 16 bytes to shared memory; zeros, and no read, where they are not `inside`.
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
        "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
        : "memory");
}

// The copies since the last call become a group.
__device__ __forceinline__ void commit_copies()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most GROUPS of this thread's groups are on their way.
template <int GROUPS> __device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
