"""`make gpu`: everything that needs a GPU, in one command; `benchmarks/README.md` says how to run it."""
