"""What a forward pass costs, in multiply-accumulates: of an image tower, or of a whole video model."""

from .count import count_macs
from .report import COMPONENTS, CONVENTION, CostReport

__all__ = ["COMPONENTS", "CONVENTION", "CostReport", "count_macs"]
