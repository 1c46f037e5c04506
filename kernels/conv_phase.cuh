// conv_phase.cuh: backward data as convolutions of stride 1, one for each stride phase.
#pragma once

// One axis of a stride phase of backward data: the pixels first, first + stride, ... of dx, and the
// taps that reach them.
struct PhaseAxis {
    int first, count;  // pixels
    int tap, taps;     // the first of the taps, and how many
    int start;         // the row or column of dy that the first tap brings to the first pixel

    // every: from one of the phase's taps to the next.
    __device__ __forceinline__ PhaseAxis(
        int first, int size, int pad, int stride, int dil, int all_taps, int every)
        : first(first), count((size - first + stride - 1) / stride), tap(0), taps(0)
    {
        const int last = min(every, all_taps);
        while (tap < last && (first + pad - tap * dil) % stride != 0) ++tap;
        if (tap < last) taps = (all_taps - 1 - tap) / every + 1;
        start = (first + pad - tap * dil) / stride;
    }
};
