"""The kernels' tests, with every check where GPUCONV_TEST_CHECKED names an order."""

import os

if order := os.environ.get("GPUCONV_TEST_CHECKED"):
    from every_check import check_everything

    check_everything(order)
