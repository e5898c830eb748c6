"""Clocks, power and temperature of the GPU, which tell a throttled run from a good one."""

from __future__ import annotations

import torch

from alt.measure.machine import query_driver

FIELDS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu", "pstate")


def read(device: torch.device) -> dict[str, str]:
    """Returns the state now, as the driver prints it; empty without a GPU."""
    return dict(zip(FIELDS, query_driver(FIELDS), strict=False)) if device.type == "cuda" else {}
