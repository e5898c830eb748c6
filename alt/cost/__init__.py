"""The cost of a forward pass in multiply-accumulates, for an image tower or a whole video model."""

from .choose import schedule_for
from .count import count_macs
from .report import COMPONENTS, CONVENTION, CostReport

__all__ = ["COMPONENTS", "CONVENTION", "CostReport", "count_macs", "schedule_for"]
