"""Makes the kernels of tests run with every check of the simulator, in one order.

The environment variable GPUCONV_TEST_CHECKED names the order: forward, reverse or shuffled. `make
test-orders` runs the kernels' tests so, in each of them.
"""

from gpuconv.sim.launch import Function
from gpuconv.sim.machine import Module


def check_everything(order):
    """From now on every module checks that does not count, and every launch runs in `order`."""
    build, launch = Module.__init__, Function.launch

    def checked(self, source, options=(), *, check=False, count=False, **words):
        build(self, source, options, check=check or not count, count=count, **words)

    def ordered(self, grid, block, args, shared=0, order_="", seed=0, *more, **words):
        words.pop("order", None)
        return launch(self, grid, block, args, shared, order, seed or 1, *more, **words)

    Module.__init__, Function.launch = checked, ordered
