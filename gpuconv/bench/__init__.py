"""Benchmarks of operations: shapes in, a table of times, TFLOP/s, GB/s and roofline shares out.

A wrong result is never timed: each pass is compared with its reference in float64 first, and its
bytes with those of that first result after the clock has stopped. `gpuconv bench` is the command;
`make gpu-check` times every kernel with the same code.
"""
