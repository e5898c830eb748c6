"""GPU kernels in Triton, one file per op; imported when the first CUDA tensor reaches an op (or by a test)."""
