"""Tools that develop the kernels: ahead-of-time compilation, the reader of compiled code, the tuner. Not installed."""
