"""Cases for ahead-of-time compilation, one file per kernel file of alt_kernels.triton."""
