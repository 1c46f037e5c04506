"""Counts the multiply-adds that a plan's kernels execute, in the simulator.

The same sources, with `fmaf` replaced by a function that counts its calls and then does the same:
a count of executed operations, padding and all. It is no measurement of time.
"""

import kernel_runs
import numpy as np
from kernel_runs import sim, source

COUNTER = """
__device__ unsigned long long executed;
__device__ __forceinline__ float counted_fmaf(float a, float b, float c)
{
    atomicAdd(&executed, 1ull);
    return __fmaf_rn(a, b, c);
}
#define fmaf counted_fmaf
"""


def multiply_adds(monkeypatch, call):
    """How many fmaf the kernels that `call` runs execute, all threads together.

    Skips where kernels run on a GPU, which starts the sources as they are.
    """
    compiled, made = sim.Module, []

    def module(file, options, check):
        made.append(compiled(COUNTER + source.text(file), options, name=file, check=check))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(kernel_runs, "module", module)
        call()
    assert made, "no kernel of the counting sources ran"
    counts = []
    for one in made:
        try:
            counts.append(sim.asnumpy(one.variable("executed", np.uint64)))
        except ValueError:  # a kernel file without a single fmaf
            continue
    return int(sum(int(count.ravel()[0]) for count in counts))
