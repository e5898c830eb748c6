"""GPU kernels in Triton, one file an op; imported only when a CUDA tensor reaches an op (or by a test)."""
