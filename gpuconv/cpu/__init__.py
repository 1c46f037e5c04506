"""The fast CPU path: BLAS for matrix products, compiled loops for the rest (see README.md)."""
