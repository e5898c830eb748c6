"""Contracts: public functions, schemas, fakes, FLOP formulas, dispatch and gradients, one file per op."""
