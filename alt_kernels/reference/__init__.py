"""Definitions: every op in plain torch, float64-capable, the oracle of all tests."""
