"""Kernels in Triton, one source for torch and JAX (jax-triton). Only an op that runs them imports these modules.

`availability` says whether they can run here, `launch` starts one on either framework, `tiles` loads and stores. A
kernel's arguments are the input tensors, the length, the output tensors, then constants, because jax-triton passes
them so. Every output element is written by one program, in a fixed order of sums: results are bitwise repeatable.
"""
