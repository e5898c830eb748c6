"""The contracts: public functions, schemas, fakes, FLOP formulas, dispatch and gradients, one file an op."""
