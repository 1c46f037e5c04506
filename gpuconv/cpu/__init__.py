"""The fast CPU path: BLAS for what is a matrix product, Numba for the loops around it."""
